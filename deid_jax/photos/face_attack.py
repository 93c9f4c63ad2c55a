"""The attack on faces in photos, fitted on every surrogate's own crop.

The attack optimises the perturbation δ of a face's canvas c. Every surrogate f cuts its own
crop A_f, by its own template, out of the canvas, with a new random misalignment in every step:

  min E_{t,A} max_f s_f( f(A_f(t(c + w C δ))), e_f ) − τ_f   with ‖δ‖₂ ≤ ε,

with pixel weights w, similarities s_f, thresholds τ_f, random transformations
t that imitate the processing of photos, and e_f the embedding to move away from. C keeps the
luma of δ and half of its chroma, which is more visible than it is useful to the attack. The
maximum is smooth (`objectives.embeddings.ensemble`), so that every surrogate counts.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.arrays import Bracket, fold_in_all, per_image
from deid_jax.attacks.mifgvm import MIFGVMConfig, mifgvm
from deid_jax.models.templates import Alignment
from deid_jax.objectives.embeddings import dodge, ensemble, expectation
from deid_jax.photos.alignment import fit_similarity
from deid_jax.photos.canvases import Canvas
from deid_jax.photos.verifiers import Verifier
from deid_jax.transfer import Surrogates
from deid_jax.transforms.alignments import Misalignment, cut
from deid_jax.transforms.random_transforms import TRANSFORMATIONS
from deid_jax.types import NumpyArray, Objective

# Batches are padded to the next of these sizes, so that few programs are compiled.
BATCHES = (1, 4, 16)
# Bisections for the scale of a perturbation, and the largest scale.
_HALVINGS = 14
_LARGEST = 8.0
# In units of ε: the largest total length of all steps, and the largest step.
_REACH = 10.0
_STEP = 1 / 3
# Luma of RGB by ITU-R BT.601, and the part of a perturbation's chroma that is kept.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32).reshape(1, 1, 1, 3)
_CHROMA = 0.5


@dataclasses.dataclass(frozen=True)
class FaceAttack:
    """The misalignment and processing that the attack anticipates; static under `jit`.

    Attributes:
      misalignment: of crops, drawn for every surrogate in every step.
      processing: a key of `TRANSFORMATIONS`, for whole canvases.
    """

    misalignment: Misalignment
    processing: str = "processing"

    def objective(
        self, surrogates: Surrogates, canvases: "Canvases", alignments: Sequence[Alignment]
    ) -> Objective:
        """The objective on images of the canvases; its loss is below zero on success."""

        def of(number: int) -> Objective:
            model, alignment = surrogates.models[number], alignments[number]
            height, width = alignment.height, alignment.width

            def one(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
                own = fold_in_all(key, number)
                known = jnp.asarray(canvases.maps[number])
                maps = self.misalignment.drawn(known, own, height, width)

                def embed(images: jax.Array) -> jax.Array:
                    crops = cut(images, maps, height, width)
                    return model.apply(surrogates.variables[number], crops)

                return dodge(
                    embed,
                    surrogates.galleries[number],
                    surrogates.thresholds[number],
                    surrogates.distances[number],
                )(images, key)

            return one

        goals = ensemble([of(number) for number in range(len(alignments))], "smooth")
        expected = expectation(goals, TRANSFORMATIONS[self.processing], 1)

        def objective(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            return expected(canvases.perturbed(images), key)

        return objective


# The perturbation should survive other detectors, JPEG and resizing.
ATTACK = FaceAttack(Misalignment())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Canvases:
    """The canvases of N faces.

    Attributes:
      images: float32[N, S, S, 3] in [0, 1].
      weights: float32[N, S, S, 1] in [0, 1], of `Canvas.weights`.
      maps: float32[N, 2, 3] for each surrogate, from the canvas to its crop.
      areas: float32[N], of `Canvas.area`.
      grey: bool[N], whether the photo is grey; the perturbation is then grey as well.
    """

    images: NumpyArray
    weights: NumpyArray
    maps: tuple[NumpyArray, ...]
    areas: NumpyArray
    grey: NumpyArray

    @classmethod
    def of(
        cls,
        surrogates: Sequence[Verifier],
        pixels: NumpyArray,
        canvases: Sequence[Canvas],
        *,
        grey: bool,
    ) -> "Canvases":
        """The canvases of the faces of a photo, uint8[H, W, 3]."""
        maps = [
            [fit_similarity(one.landmarks, own.embedder.alignment.points) for one in canvases]
            for own in surrogates
        ]
        return cls(
            images=np.stack([one.cut_from(pixels) for one in canvases]),
            weights=np.stack([one.weights() for one in canvases]),
            maps=tuple(np.stack(own).astype(np.float32) for own in maps),
            areas=np.array([one.area() for one in canvases], np.float32),
            grey=np.full(len(canvases), grey),
        )

    def take(self, places: Sequence[int] | NumpyArray) -> "Canvases":
        """The canvases at the given positions."""
        taken: Canvases = jax.tree.map(lambda part: part[places], self)
        return taken

    def perturbed(self, images: jax.Array) -> jax.Array:
        """clip₀₁(c + w C δ) of images c + δ."""
        perturbation = weighted(images - self.images, self.weights, self.grey)
        return jnp.clip(self.images + perturbation, 0, 1)


def weighted(
    perturbations: jax.Array | NumpyArray, weights: NumpyArray, grey: NumpyArray
) -> jax.Array:
    """The perturbations as they are added, w C δ: float32[N, S, S, 3].

    Weights are float32[N, S, S, 1]; grey, bool[N], marks photos that get no chroma.
    """
    chroma = per_image(jnp.where(grey, 0, jnp.float32(_CHROMA)))
    luma = jnp.sum(perturbations * _LUMA, axis=3, keepdims=True)
    return jnp.asarray(weights) * (luma + chroma * (perturbations - luma))


@functools.partial(jax.jit, static_argnames=("attack", "alignments"))
def find_perturbation(
    surrogates: Surrogates,
    canvases: Canvases,
    config: MIFGVMConfig,
    key: jax.Array,
    initial: jax.Array | None,
    *,
    attack: FaceAttack,
    alignments: tuple[Alignment, ...],
) -> jax.Array:
    """Finds the perturbation δ of each face: float32[N, S, S, 3]; `weighted` is added.

    The attack starts from the perturbation `initial`, or from zero, with key[N].
    """
    objective = attack.objective(surrogates, canvases, alignments)
    images = jnp.asarray(canvases.images)
    start = None if initial is None else jnp.clip(images + initial, 0, 1)
    return mifgvm(objective, images, config, key, initial=start).images - images


def perturbations(
    verifiers: Sequence[Verifier],
    canvases: Canvases,
    references: Sequence[Sequence[NumpyArray]],
    initial: NumpyArray | None,
    *,
    psnr: float,
    keys: jax.Array,
    num_steps: int,
) -> NumpyArray:
    """Runs `find_perturbation` on any number of faces: float32[N, S, S, 3].

    The attack is fitted on the surrogates among the verifiers. The references are
    `Verifier.references` of each face for each verifier. The budget ε is the PSNR of
    the face in dB, see `Canvas.error`.
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
    alignments = tuple(verifiers[place].embedder.alignment for place in columns)
    sizes = np.sqrt(3 * canvases.areas) * np.float32(10 ** (-psnr / 20))
    reach = min(_REACH, _STEP * num_steps)
    found = []
    for first in range(0, len(canvases.images), BATCHES[-1]):
        count = min(len(canvases.images) - first, BATCHES[-1])
        size = next(batch for batch in BATCHES if batch >= count)
        places = first + np.minimum(np.arange(size), count - 1)
        perturbation = find_perturbation(
            surrogates.take(places),
            canvases.take(places),
            MIFGVMConfig(jnp.asarray(sizes[places]), reach=reach, num_steps=num_steps),
            keys[places],
            None if initial is None else initial[places],
            attack=ATTACK,
            alignments=alignments,
        )
        found.append(np.asarray(perturbation)[:count])
    return np.concatenate(found)


def add(
    pixels: NumpyArray,
    faces: Iterable[tuple[Canvas, NumpyArray]],
    psnrs: Iterable[float],
    *,
    grey: bool,
) -> NumpyArray:
    """Adds the perturbation of every face, float32[S, S, 3], to the photo: uint8[H, W, 3].

    Each is scaled to its PSNR of the face in dB, see `Canvas.error`, or as close to it as
    clipping and a scale of at most eight allow. Other pixels do not change.
    """
    changed = pixels.copy()
    for (canvas, perturbation), psnr in zip(faces, psnrs, strict=True):
        (shown,) = weighted(perturbation[None], canvas.weights()[None], np.array([grey]))
        inside, own = canvas.spread(np.asarray(shown))
        most = 255**2 * 10 ** (-psnr / 10) * 3 * canvas.area() * canvas.ratio**2
        changed[inside] = _scaled(changed[inside], own, most)
    return changed


def _scaled(before: NumpyArray, perturbation: NumpyArray, most: float) -> NumpyArray:
    """round(x + 255 t δ) with the largest t ≤ 8 whose squared errors sum to at most `most`."""

    def at(share: float) -> NumpyArray:
        moved = before + np.rint(np.float32(255 * share) * perturbation)
        return np.clip(moved, 0, 255).astype(np.uint8)

    bracket = Bracket(np.array(0.0), np.array(_LARGEST))
    for _ in range(_HALVINGS):
        middle = bracket.middle()
        error = at(float(middle)).astype(np.float32) - before
        bracket = bracket.narrowed(middle, np.array(float(np.sum(np.square(error))) <= most))
    return at(float(bracket.holds))
