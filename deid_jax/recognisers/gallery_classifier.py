"""User-supplied recognisers, made into classifiers of the persons of a data set.

Attacks, sweeps and reports need logits. A gallery turns an embedder into a classifier: the
logits are 30 s(f(x), c_p), s the recogniser's similarity and c_p the centroid of person p's
training photos, so that the person predicted is the one whose gallery is nearest.
"""

import dataclasses

import jax
import numpy as np
from jax.typing import DTypeLike

from deid_jax.data.dataset import FaceDataset
from deid_jax.devices import sharding
from deid_jax.errors import InputError
from deid_jax.metrics import verification
from deid_jax.metrics.verification import Distance
from deid_jax.objectives.embeddings import similarity
from deid_jax.recognisers import predicting
from deid_jax.recognisers.checkpoints import CheckpointInfo, Recogniser
from deid_jax.recognisers.embedders import BATCH_SIZE, Embedder
from deid_jax.types import Model, NumpyArray, Variables

# What the recogniser's function returns for an image.
OUTPUTS = ("embeddings", "logits")
# ArcFace's scale: unscaled similarities are too close together for a softmax.
_SCALE = 30.0


@dataclasses.dataclass(frozen=True)
class GalleryClassifier:
    """A classifier with the interface of a Flax module; `output` is one of `OUTPUTS`."""

    module: Model
    output: str = "embeddings"
    distance: Distance = Distance.COSINE

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits float32[B, P] of float32[B, H, W, 3] in [0, 1].

        Variables are "recogniser", its weights, and "gallery", float32[P, D], the centroids.
        """
        found = self.module.apply(variables["recogniser"], images)
        if self.output == "logits":
            return found
        return _SCALE * similarity(found[:, None], variables["gallery"][None], self.distance)

    def clone(self, *, dtype: DTypeLike) -> "GalleryClassifier":
        """The same classifier, computing in another precision.

        Raises:
          InputError: it is a function, whose precision is fixed.
        """
        if not hasattr(self.module, "clone"):
            raise InputError("precision must be float32 for a recogniser that is a function")
        return dataclasses.replace(self, module=self.module.clone(dtype=dtype))


def _embed_all(embedder: Embedder, faces: FaceDataset) -> NumpyArray:
    """Embeddings float32[N, D], with one batch of images in memory at a time."""
    found = []
    for start in range(0, len(faces), BATCH_SIZE):
        places = range(start, min(start + BATCH_SIZE, len(faces)))
        embeddings = embedder.embed(np.stack([faces.read(place) for place in places]))
        finite = np.isfinite(embeddings).all(axis=1)
        if not finite.all():
            raise InputError(
                f"recogniser {embedder.name} gives NaN or infinity for "
                f"{faces.image_name(places[int(np.argmin(finite))])}"
            )
        found.append(embeddings)
    return np.concatenate(found)


def from_embedder(
    embedder: Embedder,
    output: str,
    known: FaceDataset,
    held_out: FaceDataset | None = None,
    *,
    model_parallel: int = 1,
) -> Recogniser:
    """Makes a classifier of a data set's persons from a user-supplied recogniser.

    `known` are the photos of its gallery (for logits, a data set with its persons); `held_out`
    are others, to measure its accuracy on. Dense layers are divided over `model_parallel`
    devices.

    Raises:
      InputError: the output is unknown, or there is not one logit per person.
    """
    if output not in OUTPUTS:
        raise InputError(f"recogniser_output must be one of {', '.join(OUTPUTS)}, got {output}")
    mesh = sharding.narrowed(sharding.local_mesh(model_parallel), 1)
    with sharding.working_on(mesh.devices[0]):
        embeddings = _embed_all(embedder, known)
    persons = len(known.persons)
    if output == "logits" and embeddings.shape[1] != persons:
        raise InputError(
            f"recogniser {embedder.name} must give a logit for each of {persons} persons, got "
            f"{embeddings.shape[1]}: for embeddings give --recogniser_output=embeddings"
        )
    gallery = np.zeros((0, embeddings.shape[1]), np.float32)
    if output == "embeddings":
        members = [np.flatnonzero(known.labels == person) for person in range(persons)]
        centroids = verification.centroids(embeddings, members, embedder.distance)
        gallery = np.asarray(centroids, np.float32)
    model = GalleryClassifier(embedder.module, output, embedder.distance)
    variables = {"recogniser": embedder.variables, "gallery": gallery}
    sets = [known] if held_out is None else [known, held_out]
    info = CheckpointInfo(
        model=embedder.name,
        persons=known.persons,
        image_size=known.image_size,
        dataset=known.name,
        split=known.split,
        seed=0,
        pictures=known.image_names,
        provenance=dict(known.provenance),
        training={},
        accuracy={
            faces.split: predicting.accuracy(model, variables, faces, mesh=mesh)
            for faces in sets
        },
    )
    return Recogniser(model, variables, info)
