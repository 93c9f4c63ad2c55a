"""Faces of a photo made unlike themselves, in the recognisers' crop, and brought back.

What a recogniser sees of a photo is a crop of 112 × 112 pixels. The change δ is sought there,
and what the crop will see of it once it was brought to the photo's own pixels and back is
R δ Cᵀ (`alignment.roundtrip`), so that is what the attack differentiates:

  least E_t max_f cos( f(t(c + R δ Cᵀ)), e_f ) − τ_f   with ‖δ‖₂ ≤ ε,

over recognisers f with thresholds τ_f, the crop c, random transformations t of what happens to
photos on their way, and e_f the face that f is not to know again. The maximum is smooth
(`embedding_objectives.ensemble`), so that others count, too.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.arrays import per_image
from deid_jax.attacks.budgets import l2_of_psnr
from deid_jax.attacks.mifgvm import MIFGVMConfig, mifgvm
from deid_jax.devices.sharding import placed_at_hand
from deid_jax.objectives.embeddings import dodge, ensemble, expectation
from deid_jax.photos.alignment import roundtrip, spread
from deid_jax.photos.judging import Witness
from deid_jax.transforms.random_transforms import TRANSFORMATIONS, compose
from deid_jax.types import Objective

# What the change is to bear: other boxes around the face, JPEG, resizing.
FORESEEN = ("resize_pad_flip", "processing")
# Faces are attacked so many at a time, padded to the next of these: few programs are compiled.
BATCHES = (1, 4, 16)


class Program(NamedTuple):
    """What decides the compiled program, beside shapes: static.

    Attributes:
      modules: the recognisers to fool.
      foreseen: keys of `TRANSFORMATIONS`, one after the other.
      num_steps: gradient steps.
      reach: of `MIFGVMConfig`: how far all steps together would go.
    """

    modules: tuple[Any, ...]
    foreseen: tuple[str, ...] = FORESEEN
    num_steps: int = 30
    reach: float = 10.0


class Crops(NamedTuple):
    """Faces as recognisers see them.

    Attributes:
      images: float32[B, S, S, 3] in [0, 1].
      rows: float32[B, S, S], R of `alignment.roundtrip`.
      columns: float32[B, S, S], C.
      grey: bool[B], of photos of one channel, which the change keeps.
    """

    images: Any
    rows: Any
    columns: Any
    grey: Any


def _seen(crops: Crops, changed: jax.Array) -> jax.Array:
    """clip₀₁(c + R δ Cᵀ) of c + δ."""
    change = changed - crops.images
    change = jnp.where(per_image(crops.grey), change.mean(axis=3, keepdims=True), change)
    once = jnp.einsum("bij,bjwc->biwc", crops.rows, change)
    return jnp.clip(crops.images + jnp.einsum("bij,bhjc->bhic", crops.columns, once), 0, 1)


@functools.partial(jax.jit, static_argnames="program")
def find_change(
    variables: Sequence[Any],
    crops: Crops,
    references: Sequence[jax.Array],
    thresholds: Sequence[jax.Array],
    psnr: jax.Array,
    key: jax.Array,
    *,
    program: Program,
    initial: jax.Array | None = None,
) -> jax.Array:
    """δ of each face: float32[B, S, S, 3], by `mifgvm`.

    Args:
      variables: the recognisers' weights.
      crops: the faces.
      references: float32[B, D] for each recogniser, unit vectors: e_f.
      thresholds: float32[] for each, τ_f.
      psnr: float32[] in dB: what ‖δ‖₂ may be.
      key: key[B].
      program: everything static.
      initial: float32[B, S, S, 3], the change to begin with; None: none.
    """
    goals = [
        dodge(functools.partial(module.apply, weights), reference, threshold)
        for module, weights, reference, threshold in zip(
            program.modules, variables, references, thresholds, strict=True
        )
    ]
    objective = ensemble(goals, "smooth")
    if program.foreseen:
        chosen = compose(*(TRANSFORMATIONS[name] for name in program.foreseen))
        objective = expectation(objective, chosen, 1)

    def in_photo(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return objective(_seen(crops, images), key)

    fitted: Objective = in_photo
    size = l2_of_psnr(psnr, crops.images[0].size)
    config = MIFGVMConfig(epsilon=size, reach=program.reach, num_steps=program.num_steps)
    start = None if initial is None else jnp.clip(crops.images + initial, 0, 1)
    changed = mifgvm(fitted, crops.images, config, key, initial=start).images
    change = changed - crops.images
    return jnp.where(per_image(crops.grey), change.mean(axis=3, keepdims=True), change)


def crops_at(images: np.ndarray, matrices: Sequence[np.ndarray], *, grey: bool) -> Crops:
    """Crops float32[N, S, S, 3] of the places that N similarities name."""
    rows, columns = (np.stack(m) for m in zip(*map(roundtrip, matrices), strict=True))
    return Crops(images, rows, columns, np.full(len(images), grey))


# Of a step that goes on from a change: its length in ε, that of 30 steps from none.
_STEP = 1 / 3


def changes_from(
    witnesses: Sequence[Witness],
    crops: Crops,
    references: Sequence[np.ndarray],
    initial: np.ndarray | None,
    *,
    psnr: float,
    keys: jax.Array,
    num_steps: int,
) -> np.ndarray:
    """`find_change` of any number of crops, from a change that was found before.

    Args:
      witnesses: whom to fool.
      crops: of N faces.
      references: [N, D] for each recogniser.
      initial: float32[N, S, S, 3], changes to begin with; None: none.
      psnr: in dB.
      keys: key[N].
      num_steps: gradient steps.

    Returns:
      float32[N, S, S, 3].
    """
    usual = Program(()).reach
    reach = usual if initial is None else min(usual, _STEP * num_steps)
    modules = tuple(one.embedder.module for one in witnesses)
    program = Program(modules, num_steps=num_steps, reach=reach)
    variables = [placed_at_hand(one.embedder.variables) for one in witnesses]
    thresholds = [jnp.float32(one.threshold) for one in witnesses]
    found = []
    for first in range(0, len(crops.images), BATCHES[-1]):
        count = min(len(crops.images) - first, BATCHES[-1])
        size = next(batch for batch in BATCHES if batch >= count)
        places = first + np.minimum(np.arange(size), count - 1)
        change = find_change(
            variables,
            Crops(*(part[places] for part in crops)),
            [jnp.asarray(reference[places], jnp.float32) for reference in references],
            thresholds,
            jnp.float32(psnr),
            keys[places],
            program=program,
            initial=None if initial is None else initial[places],
        )
        found.append(np.asarray(change)[:count])
    return np.concatenate(found)


def add(
    pixels: np.ndarray,
    changes: Iterable[np.ndarray],
    matrices: Sequence[np.ndarray],
    psnrs: Iterable[float],
    *,
    grey: bool,
) -> np.ndarray:
    """The photo with every face changed: uint8[H, W, 3].

    Each change is scaled so that the pixels which it touches come to its PSNR, or as near as
    what lies beyond black and white and four times the change let it; other pixels stay as
    they are.

    Args:
      pixels: uint8[H, W, 3].
      changes: float32[S, S, 3] for each face.
      matrices: their places.
      psnrs: in dB, of the pixels that each touches.
      grey: whether all channels change alike.
    """
    changed = pixels.copy()
    for change, matrix, psnr in zip(changes, matrices, psnrs, strict=True):
        ys, xs, own = spread(change, matrix, pixels.shape[:2])
        if grey:
            own = np.repeat(own.mean(axis=2, keepdims=True), 3, axis=2)
        before = changed[ys, xs]
        changed[ys, xs] = _scaled(before, own, psnr)
    return changed


_HALVINGS = 12
_LARGEST = 4.0


def _scaled(before: np.ndarray, change: np.ndarray, psnr: float) -> np.ndarray:
    """round(x + 255 t δ), t ≤ 4 the largest that keeps to the PSNR where δ is not zero."""
    touched = np.any(change != 0, axis=2)
    if not touched.any():
        return before
    most = 255**2 * 10 ** (-psnr / 10) * 3 * touched.sum()

    def at(share: float) -> np.ndarray:
        moved = np.rint(before + np.float32(255 * share) * change)
        return np.clip(moved, 0, 255).astype(np.uint8)

    fits, exceeds = 0.0, _LARGEST
    for _ in range(_HALVINGS):
        middle = (fits + exceeds) / 2
        error = at(middle).astype(np.float32) - before
        if float(np.sum(np.square(error))) <= most:
            fits = middle
        else:
            exceeds = middle
    return at(fits)
