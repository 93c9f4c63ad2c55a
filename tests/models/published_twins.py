"""PyTorch networks with published weights. Imports PyTorch."""

import torch

from experiments._peers.mobilefacenet_twin import CasiaTwin, Ms1mTwin


def with_published_weights(variant, arrays):
    """MobileFaceNet in evaluation mode, with weights loaded by name from an .npz file."""
    network = {"ms1m": Ms1mTwin, "casia": CasiaTwin}[variant]()
    found = network.load_state_dict(
        {name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False
    )
    missing = [name for name in found.missing_keys if not name.endswith("batches_tracked")]
    assert not missing, missing
    assert not found.unexpected_keys, found.unexpected_keys
    return network.eval().requires_grad_(False)
