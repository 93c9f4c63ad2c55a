"""In which precision an attack computes its gradients.

Images, losses and steps stay float32, and so does the verdict: only the recogniser inside
the attack's loop computes in less. On CPUs float32 and tf32 are the same.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp

# name -> (JAX's name for the precision of float32 products, dtype of the layers).
_SETTINGS: dict[str, tuple[str, Any]] = {
    "float32": ("highest", None),
    "tf32": ("tensorfloat32", None),
    "bf16": ("default", jnp.bfloat16),
}
PRECISIONS = tuple(_SETTINGS)


def dtype_of(precision: str) -> Any:
    """The dtype that layers compute in, or None: the input's."""
    return _SETTINGS[precision][1]


def in_precision(model: Any, precision: str) -> Any:
    """A recogniser's module that computes in a precision; its weights stay as they are.

    Args:
      model: a module with a field `dtype`, as those of `deid_jax.models` have.
      precision: of `PRECISIONS`.
    """
    dtype = dtype_of(precision)
    return model if dtype is None else model.clone(dtype=dtype)


def products_in(precision: str) -> contextlib.AbstractContextManager:
    """Where float32 products are traced with a precision."""
    return jax.default_matmul_precision(_SETTINGS[precision][0])
