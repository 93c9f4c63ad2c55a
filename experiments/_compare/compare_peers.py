"""The peers of `experiments.compare`: which there are, and what comes of them.

PyTorch is imported when a peer runs, not before.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from deid_jax.data import FaceDataset, loader
from deid_jax.errors import InputError
from deid_jax.evaluation import Keep, default_batch_size
from deid_jax.evaluation.batch import measure_float, measure_uint8
from deid_jax.evaluation.measuring import Measurements
from deid_jax.pixels import to_uint8
from deid_jax.recognisers import Recogniser
from deid_jax.types import Batch
from experiments._common import timing

_INSTALL = "pip install --no-deps -r tests/requirements-peers.txt"
_FOOLBOX = ("torch", "foolbox", "eagerpy")
_ADV_LIB = ("torch", "adv-lib")


class Peer(NamedTuple):
    """A peer: its library, the packages that it needs, the fewest steps and persons."""

    library: str
    packages: tuple[str, ...]
    least_steps: int = 1
    least_persons: int = 2


# Keys of `experiments._compare.minimal_norm_peers.ATTACKS`.
PEERS = {
    "foolbox_ddn": Peer("foolbox", _FOOLBOX),
    "foolbox_fmn": Peer("foolbox", _FOOLBOX),
    "foolbox_cw": Peer("foolbox", _FOOLBOX),
    "adv_lib_ddn": Peer("adv-lib", _ADV_LIB),
    "adv_lib_fmn": Peer("adv-lib", _ADV_LIB),
    # Its loss looks at four logits.
    "adv_lib_alma": Peer("adv-lib", _ADV_LIB, least_persons=4),
    # These divide by the number of steps less one.
    "adv_lib_pdgd": Peer("adv-lib", _ADV_LIB, 2),
    "adv_lib_pdpgd": Peer("adv-lib", _ADV_LIB, 2),
}


def search_split(num_steps: int) -> tuple[int, int]:
    """How foolbox's Carlini-Wagner attack spends K gradients: (searches, steps of each).

    Its searches for the weight of the loss begin at 0.001, ten times as much in each next one,
    so that fewer than four hardly move a picture, and fewer than five steps do not get far.
    Of the splits tried, five searches, of 10 steps (K = 50) and of 20 (K = 100), served it
    best; its own default are nine.
    """
    searches = min(9, max(1, min(5, num_steps // 5), num_steps // 20))
    return searches, num_steps // searches


class Task(NamedTuple):
    """What a peer is to do.

    Attributes:
      name: a key of `PEERS`.
      aims: int32[N], every picture's target, or its true label where there is none.
      targeted: which of them.
      num_steps: gradients per picture.
      seed: decides what it draws.
      batch_size: pictures at a time; what suits the device if None.
    """

    name: str
    aims: np.ndarray
    targeted: bool
    num_steps: int
    seed: int
    batch_size: int | None


def check_peers(names: Sequence[str], model: str, num_steps: Sequence[int]) -> None:
    """Refuses peers that cannot run here.

    Raises:
      InputError: an unknown peer, one that is not installed, that has no twin of the model, or
        that can do no so few steps.
    """
    for name in names:
        if name not in PEERS:
            raise InputError(f"peers must be of {', '.join(PEERS)}, all or none, got {name}")
    packages = dict.fromkeys(package for name in names for package in PEERS[name].packages)
    missing = [package for package in packages if not timing.version(package)]
    if missing:
        raise InputError(
            f"peers need {', '.join(missing)}: {_INSTALL}, or leave them out with --peers=none"
        )
    for name in names:
        if num_steps[0] < PEERS[name].least_steps:
            raise InputError(
                f"{name} needs num_steps of at least {PEERS[name].least_steps}, "
                f"got {num_steps[0]}"
            )
    if names:
        _check_twin(model)


def check_persons(names: Sequence[str], num_persons: int) -> None:
    """Refuses peers that need more persons than the recogniser knows.

    Raises:
      InputError: there is such a peer.
    """
    for name in names:
        least = PEERS[name].least_persons
        if num_persons < least:
            raise InputError(f"{name} needs at least {least} persons, got {num_persons}")


def _check_twin(model: str) -> None:
    import torch

    from experiments._benchmark import peers

    if model not in peers.TWINS:
        raise InputError(f"no PyTorch twin of {model} for the peers: give --peers=none")
    if peers.device().type == "cuda" and not torch.cuda.is_available():
        raise InputError("PyTorch has no CUDA device here, as JAX has: give --peers=none")


class Bench:
    """A recogniser and its twin on the same device, and the pictures.

    Args:
      recogniser: whose verdict counts.
      model: its name, a key of `deid_jax.models.MODELS`.
      faces: the pictures.
      names: the peers that will run.
    """

    def __init__(
        self, recogniser: Recogniser, model: str, faces: FaceDataset, names: Sequence[str]
    ):
        from experiments._benchmark import peers
        from experiments._compare import minimal_norm_peers

        minimal_norm_peers.import_libraries(names)
        peers.configure("float32", timing.threads())
        self._model = recogniser.model
        self._variables = jax.device_put(recogniser.variables)
        self._faces = faces
        twin = peers.twin(model, jax.device_get(recogniser.variables))
        self._twin = twin.to(peers.device())

    def run(
        self, task: Task, keep: Keep, progress: Callable[[int, int], Any]
    ) -> tuple[list[dict[str, Any]], float]:
        """Lets a peer de-identify the data set, and judges what comes of it.

        Args:
          task: what it is to do.
          keep: called with every 8-bit picture; what it returns is measured.
          progress: called with (pictures done, pictures in all).

        Returns:
          One record per picture, in the data set's order: the columns of `deid_jax.evaluation.records`
          that a comparison needs, and `claimed`, the twin's own verdict on the float result.
          And the seconds of the attack.
        """
        records: list[dict[str, Any]] = []
        seconds, total = 0.0, len(self._faces)
        size = task.batch_size or default_batch_size(self._faces.image_size, total)
        for batch in loader.in_order(self._faces, loader.even_batch_size(total, size)):
            more, spent = self._run_batch(task, batch, keep)
            records += more
            seconds += spent
            progress(len(records), total)
        return records, seconds

    def _run_batch(
        self, task: Task, batch: Batch, keep: Keep
    ) -> tuple[list[dict[str, Any]], float]:
        from experiments._compare import minimal_norm_peers

        real = np.flatnonzero(batch.mask)
        positions = [int(batch.position[place]) for place in real]
        result = minimal_norm_peers.attack(
            task.name,
            self._twin,
            np.asarray(batch.image)[real],
            task.aims[positions],
            targeted=task.targeted,
            num_steps=task.num_steps,
            seed=task.seed,
        )
        images = np.array(batch.image)
        images[real] = result.images
        kept = np.array(to_uint8(jax.numpy.asarray(images)))
        for place, position in zip(real, positions, strict=True):
            kept[place] = keep(position, kept[place])
        verdicts = {
            "": measure_float(self._variables, images, batch, model=self._model),
            "_uint8": measure_uint8(self._variables, kept, batch, model=self._model),
        }
        columns = _columns(jax.device_get(verdicts), self._faces.persons)
        records = [
            {name: values[place] for name, values in columns.items()}
            | {
                "claimed": bool(result.success[order]),
                "num_gradients": result.num_gradients,
                "num_forwards": result.num_forwards,
            }
            for order, place in enumerate(real)
        ]
        return records, result.seconds


def _columns(verdicts: dict[str, Measurements], persons: Sequence[str]) -> dict[str, list[Any]]:
    """Verdicts of [B] as columns of `deid_jax.evaluation.records`, named with the suffixes."""
    columns: dict[str, list[Any]] = {}
    for suffix, verdict in verdicts.items():
        columns |= {
            "prediction" + suffix: [persons[i] for i in verdict.predictions.label],
            "misclassified" + suffix: verdict.predictions.misclassified.tolist(),
            "l2" + suffix: verdict.l2.tolist(),
            "mssim" + suffix: verdict.mssim.tolist(),
        }
    return columns
