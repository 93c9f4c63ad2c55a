"""The precision in which an attack computes its gradients.

Images, losses, steps and metrics stay float32: only the recogniser inside the attack's loop
computes in lower precision. On CPUs float32 and tf32 are the same.
"""

import contextlib
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from deid_jax.types import Model

if TYPE_CHECKING:
    import flax.linen as nn

# name -> (JAX's name for the precision of float32 products, dtype of the layers).
_SETTINGS: dict[str, tuple[str, DTypeLike | None]] = {
    "float32": ("highest", None),
    "tf32": ("tensorfloat32", None),
    "bf16": ("default", jnp.bfloat16),
}
PRECISIONS = tuple(_SETTINGS)


def dtype_of(precision: str) -> DTypeLike | None:
    """The dtype in which layers compute; None: the input's."""
    return _SETTINGS[precision][1]


def in_precision(model: "Model | nn.Module", precision: str) -> Model:
    """A recogniser's network that computes in the given precision; weights stay float32.

    Args:
      model: a Flax module with a field `dtype`, as those of `deid_jax.models` have.
      precision: of `PRECISIONS`.
    """
    dtype = dtype_of(precision)
    # Linen types what `apply` returns as anything that a module can.
    cloned = model if dtype is None else cast("nn.Module", model).clone(dtype=dtype)
    return cast("Model", cloned)


def products_in(precision: str) -> contextlib.AbstractContextManager[None]:
    """A context in which float32 products are traced with the given precision."""
    return jax.default_matmul_precision(_SETTINGS[precision][0])
