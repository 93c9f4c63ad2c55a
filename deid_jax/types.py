"""The contracts that attacks, objectives and metrics share.

Layout is [B, H, W, C], RGB; pixels are float32 in [0, 1]; labels are int32; a PRNG key is a
typed key array (`jax.random.key`). Every per-image quantity is [B]: one entry per image, so
that batches can be padded, split and sharded freely.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

# A tree of arrays: a model's variables, an optimiser's state. JAX has no closer type for one.
PyTree: TypeAlias = Any  # type: ignore[explicit-any]
# The weights of a model, as Flax nests them.
Variables: TypeAlias = PyTree
# NumPy's own annotations leave the dtype open; a bare `np.ndarray` says no more than this.
AnyDtype: TypeAlias = Any  # type: ignore[explicit-any]
NumpyArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[AnyDtype]]
# What JSON can hold.
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class Config(Protocol):
    """The settings of a method: a frozen dataclass that is a pytree.

    Settings that change the compiled program are static; α, λ, ε are leaves.
    """

    __dataclass_fields__: ClassVar[dict[str, "dataclasses.Field[object]"]]


class Model(Protocol):
    """A Flax Linen network: hashable, and separate from its weights."""

    def apply(self, variables: Variables, images: jax.Array, /) -> jax.Array:
        """Logits float32[B, K] or embeddings float32[B, D] of images float32[B, H, W, 3]."""
        ...


class Batch(NamedTuple):
    """One padded batch of images.

    Attributes:
      image: float32[B, H, W, C] in [0, 1]; padding repeats the last image.
      label: int32[B], the person's class index.
      position: int32[B], the image's position in its data set.
      mask: bool[B], False where an entry is padding.
    """

    image: jax.Array
    label: jax.Array
    position: jax.Array
    mask: jax.Array


class Objective(Protocol):
    """The function that an attack minimises, evaluated by one forward pass."""

    def __call__(self, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Judges a batch.

        Entry b of both results depends on image b and key b alone.

        Args:
          images: float32[B, H, W, C] in [0, 1].
          key: key[B], one per image and fresh at every step, for objectives that transform
            their input at random.

        Returns:
          loss: float32[B], to be minimised.
          success: bool[B], whether the attack's goal is reached.
        """
        ...


class AttackResult(NamedTuple):
    """The result of an attack.

    Attributes:
      images: float32[B, H, W, C] in [0, 1], the de-identified images.
      loss: float32[B], the objective's loss at `images`.
      success: bool[B], whether `images` reach the attack's goal.
      num_gradients: int32[B], gradient evaluations spent on each image.
      num_forwards: int32[B], further forward passes spent on each image.

    Where a config asks for S numbers of steps at once, every entry has a leading axis S.
    """

    images: jax.Array
    loss: jax.Array
    success: jax.Array
    num_gradients: jax.Array
    num_forwards: jax.Array


class Attack(Protocol):
    """A de-identification method: a pure function, ready for `jit`, `vmap` and sharding."""

    def __call__(
        self,
        objective: Objective,
        images: jax.Array,
        config: PyTree,
        key: jax.Array,
        *,
        initial: jax.Array | None = None,
    ) -> AttackResult:
        """De-identifies a batch.

        Args:
          objective: what to minimise; it alone knows models and labels.
          images: float32[B, H, W, C] in [0, 1], the originals x.
          config: the method's frozen config. Floats are traced pytree leaves, so that another
            value needs no compilation; settings that change the program are static.
          key: one key for the batch or key[B], one per image.
          initial: float32[B, H, W, C] in [0, 1], the first iterate x̂₀; the originals if None.

        Returns:
          The result; `images` has the originals' shape and dtype and lies in [0, 1].

        Raises:
          InputError: `images` or `initial` is not a batch of images (values are checked
            where they are concrete, shapes and dtypes always).
        """
        ...
