"""The attack on aligned crops of faces, and its perturbations added to the photo.

The attack optimises the perturbation δ of ArcFace's crop of a face, 112 × 112 pixels. Added to
the photo's own pixels, it turns up in the crop c_f that a recogniser f cuts out by its own
alignment as R_f δ C_fᵀ: by `alignment.round_trip`, and the map from one crop to the other. The
attack differentiates through both:

  min E_t max_f s_f( f(t(c_f + R_f δ C_fᵀ)), e_f ) − τ_f   with ‖δ‖₂ ≤ ε,

with surrogates f, their similarities s_f and thresholds τ_f, random transformations t that
imitate the processing of photos, and e_f the embedding to move away from. The maximum is smooth
(`objectives.embeddings.ensemble`), so that every surrogate counts.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.arrays import Bracket, per_image
from deid_jax.attacks.budgets import l2_of_psnr
from deid_jax.attacks.mifgvm import MIFGVMConfig
from deid_jax.models.templates import Alignment
from deid_jax.photos.alignment import SIZE, crop_matrix, inverse_of, round_trip, to_photo
from deid_jax.photos.faces import Face
from deid_jax.photos.verifiers import Verifier, crops_of, own_crops
from deid_jax.recognisers.cutting import resample, resampling_matrix
from deid_jax.transfer import SurrogateAttack, Surrogates
from deid_jax.types import NumpyArray

# The perturbation should survive other boxes around the face, JPEG and resizing.
ATTACK = SurrogateAttack(foreseen=("resize_pad_flip", "processing"))
# Batches are padded to the next of these sizes, so that few programs are compiled.
BATCHES = (1, 4, 16)
# Bisections of the scale of a perturbation, and the largest scale.
_HALVINGS = 12
_LARGEST = 4.0
# In units of ε: the total length of all steps, and the largest step from a given perturbation.
_REACH = 10.0
_STEP = 1 / 3


class Seen(NamedTuple):
    """What one surrogate sees of N faces.

    Attributes:
      images: float32[N, h, w, 3] in [0, 1], its own crops.
      rows: float32[N, h, S], R_f.
      columns: float32[N, w, S], C_f.
    """

    images: NumpyArray
    rows: NumpyArray
    columns: NumpyArray


class Crops(NamedTuple):
    """Aligned crops of N faces.

    Attributes:
      images: float32[N, S, S, 3] in [0, 1], ArcFace's crops.
      own: for each surrogate.
      grey: bool[N], whether the photo is grey; the perturbation is then grey as well.
    """

    images: NumpyArray
    own: tuple[Seen, ...]
    grey: NumpyArray

    @classmethod
    def of(
        cls,
        surrogates: Sequence[Verifier],
        pixels: NumpyArray,
        faces: Sequence[Face],
        *,
        grey: bool,
    ) -> "Crops":
        """Cuts the crops of a photo's faces, uint8[H, W, 3]."""
        trips = [round_trip(crop_matrix(face)) for face in faces]
        own = []
        for one, images in zip(surrogates, own_crops(surrogates, pixels, faces), strict=True):
            rows, columns = [], []
            for face, (there, across) in zip(faces, trips, strict=True):
                down, right = _between(face, one.embedder.alignment)
                rows.append(down @ there)
                columns.append(right @ across)
            own.append(Seen(images, np.stack(rows), np.stack(columns)))
        return cls(crops_of(pixels, faces), tuple(own), np.full(len(faces), grey))

    def take(self, places: Sequence[int] | NumpyArray) -> "Crops":
        """The crops at the given positions."""
        taken: Crops = jax.tree.map(lambda part: part[places], self)
        return taken


def _between(face: Face, alignment: Alignment) -> tuple[NumpyArray, NumpyArray]:
    """float32[h, S] and [w, S]: resample ArcFace's crop of a face to another alignment's.

    The small rotation between the two is left out.
    """
    back = inverse_of(crop_matrix(face))
    matrix = crop_matrix(face, alignment)
    linear = matrix[:, :2] @ back[:, :2]
    scale = float(np.trace(linear) / 2)
    middle = np.full(2, (SIZE - 1) / 2)
    x, y = linear @ middle + matrix[:, :2] @ back[:, 2] + matrix[:, 2] - scale * middle
    return (
        resampling_matrix(scale, float(y), alignment.height, SIZE),
        resampling_matrix(scale, float(x), alignment.width, SIZE),
    )


def _seen(crops: Crops, images: jax.Array) -> tuple[jax.Array, ...]:
    """clip₀₁(c_f + R_f δ C_fᵀ) of c + δ for each surrogate."""
    change = _greyed(crops, images - crops.images)
    return tuple(
        jnp.clip(own.images + resample(change, own.rows, own.columns), 0, 1)
        for own in crops.own
    )


def _greyed(crops: Crops, change: jax.Array) -> jax.Array:
    grey = per_image(jnp.asarray(crops.grey))
    return jnp.where(grey, change.mean(axis=3, keepdims=True), change)


@functools.partial(jax.jit, static_argnames=("attack", "num_steps", "reach"))
def find_perturbation(
    surrogates: Surrogates,
    crops: Crops,
    psnr: jax.Array,
    key: jax.Array,
    initial: jax.Array | None,
    *,
    attack: SurrogateAttack,
    num_steps: int,
    reach: float,
) -> jax.Array:
    """Finds the perturbation δ of each face: float32[B, S, S, 3].

    PSNR in dB is the budget ε of ‖δ‖₂, `reach` the total length of all steps in units of ε. The
    attack starts from the perturbation `initial`, or from zero, with key[B].
    """
    size = l2_of_psnr(psnr, crops.images[0].size)
    config = MIFGVMConfig(epsilon=size, reach=reach, num_steps=num_steps)
    start = None if initial is None else jnp.clip(crops.images + initial, 0, 1)
    result = attack.perturb(
        surrogates,
        jnp.asarray(crops.images),
        config,
        key,
        view=functools.partial(_seen, crops),
        initial=start,
    )
    return _greyed(crops, result.images - crops.images)


def perturbations(
    verifiers: Sequence[Verifier],
    crops: Crops,
    references: Sequence[Sequence[NumpyArray]],
    initial: NumpyArray | None,
    *,
    psnr: float,
    keys: jax.Array,
    num_steps: int,
) -> NumpyArray:
    """Runs `find_perturbation` on any number of crops: float32[N, S, S, 3].

    The surrogates among the verifiers are to be fooled; for each face and each verifier there
    are its `Verifier.references`.
    """
    columns = [place for place, one in enumerate(verifiers) if one.is_surrogate]
    surrogates = Surrogates.of(
        [verifiers[place].embedder for place in columns],
        [
            np.stack([verifiers[place].dodged(own[place]) for own in references])
            for place in columns
        ],
        [verifiers[place].threshold for place in columns],
    )
    reach = _REACH if initial is None else min(_REACH, _STEP * num_steps)
    found = []
    for first in range(0, len(crops.images), BATCHES[-1]):
        count = min(len(crops.images) - first, BATCHES[-1])
        size = next(batch for batch in BATCHES if batch >= count)
        places = first + np.minimum(np.arange(size), count - 1)
        change = find_perturbation(
            surrogates.take(places),
            crops.take(places),
            jnp.float32(psnr),
            keys[places],
            None if initial is None else initial[places],
            attack=ATTACK,
            num_steps=num_steps,
            reach=reach,
        )
        found.append(np.asarray(change)[:count])
    return np.concatenate(found)


def add(
    pixels: NumpyArray,
    perturbations: Iterable[NumpyArray],
    matrices: Sequence[NumpyArray],
    psnrs: Iterable[float],
    *,
    grey: bool,
) -> NumpyArray:
    """Adds the perturbation of every face to the photo: uint8[H, W, 3].

    Each perturbation is scaled until the pixels that it touches have the given PSNR, or as
    close to it as clipping and a scale of at most four allow. Other pixels do not change.

    There are a float32[S, S, 3], its crop matrix and the PSNR in dB for each face. If the photo
    is grey, all channels get the same perturbation.
    """
    changed = pixels.copy()
    for perturbation, matrix, psnr in zip(perturbations, matrices, psnrs, strict=True):
        ys, xs, own = to_photo(perturbation, matrix, pixels.shape[:2])
        if grey:
            own = np.repeat(own.mean(axis=2, keepdims=True), 3, axis=2)
        changed[ys, xs] = _scaled(changed[ys, xs], own, psnr)
    return changed


def _scaled(before: NumpyArray, change: NumpyArray, psnr: float) -> NumpyArray:
    """round(x + 255 t δ) with the largest t ≤ 4 that keeps the PSNR where δ is not zero."""
    touched = np.any(change != 0, axis=2)
    if not touched.any():
        return before
    most = 255**2 * 10 ** (-psnr / 10) * 3 * touched.sum()

    def at(share: float) -> NumpyArray:
        moved = np.rint(before + np.float32(255 * share) * change)
        return np.clip(moved, 0, 255).astype(np.uint8)

    bracket = Bracket(np.array(0.0), np.array(_LARGEST))
    for _ in range(_HALVINGS):
        middle = bracket.middle()
        error = at(float(middle)).astype(np.float32) - before
        fits = float(np.sum(np.square(error))) <= most
        bracket = bracket.narrowed(middle, np.array(fits))
    return at(float(bracket.holds))
