"""The recognisers against PyTorch twins with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.models import create_model
from tests.helpers import randomised

torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
torch.set_num_threads(1)  # Other workers share the cores.
pytestmark = pytest.mark.slow

LABELS = np.array([1, 4, 6])


def _ours(model, variables, images):
    """Logits and the input gradient of the summed cross-entropy."""

    def loss(images):
        logits = model.apply(variables, images)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), LABELS[:, None], axis=-1)
        return -picked.sum(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(images)
    return logits, gradient


def _theirs(twin, images):
    from experiments._peers import twins

    inputs = twins.to_torch(images).requires_grad_(True)
    logits = twin(inputs)
    labels = torch.from_numpy(LABELS)
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    return logits.detach().numpy(), twins.to_numpy(inputs.grad)


def _assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(("name", "size"), [("model_a", 45), ("vgg16", 45)])
def test_logits_and_input_gradients_equal_pytorch(name, size):
    from experiments._peers import twins

    model = create_model(name, num_classes=7, image_size=size)
    variables = randomised(model, size)
    twin = twins.twin(name, variables)
    images = np.asarray(jax.random.uniform(jax.random.key(3), (3, size, size, 3)))
    # Rounding puts a few of VGG-16's millions of ReLUs on the other side of zero, where the
    # gradient jumps: so the comparison is in float64.
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        images = images.astype(np.float64)
        logits, gradient = _ours(model, variables, images)
        assert gradient.dtype == np.float64
    expected_logits, expected_gradient = _theirs(twin.double(), images)
    _assert_close(logits, expected_logits)
    _assert_close(gradient, expected_gradient)
