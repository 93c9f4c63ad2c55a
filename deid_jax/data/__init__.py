"""Data sets by name. To add one, add a file here and a line to `DATASETS`."""

import importlib

from deid_jax.data.dataset import SPLITS, DataOptions, FaceDataset, Loader
from deid_jax.errors import InputError

# name -> module:function; imported only when used.
DATASETS = {
    "synthetic": "deid_jax.data.synthetic:load",
    "folder": "deid_jax.data.folder:load",
    "celeba": "deid_jax.data.celeba:load",
    "lfw": "deid_jax.data.lfw:load",
    "archive": "deid_jax.data.archive:load",
    "tfds": "deid_jax.data.tfds_folder:load",
}


def load_dataset(name: str, options: DataOptions) -> FaceDataset:
    """Loads one split of a data set.

    Raises:
      InputError: the name is unknown, or the loader cannot use the options.
    """
    if name not in DATASETS:
        raise InputError(f"dataset must be one of {', '.join(DATASETS)}, got {name}")
    module, function = DATASETS[name].split(":")
    loader: Loader = getattr(importlib.import_module(module), function)
    return loader(options)


__all__ = ["DATASETS", "SPLITS", "DataOptions", "FaceDataset", "Loader", "load_dataset"]
