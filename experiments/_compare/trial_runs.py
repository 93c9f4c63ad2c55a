"""Runs the trials of a comparison: our attacks in JAX, the peers' on a PyTorch twin."""

import contextlib
import dataclasses
import itertools
import operator
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.attacks import ATTACKS
from deid_jax.data import FaceDataset, loader
from deid_jax.evaluation import (
    Evaluation,
    Keep,
    Protocol,
    default_batch_size,
    measure_float,
    measure_uint8,
)
from deid_jax.evaluation.records import ImageMetrics, ImageRecord, image_metrics
from deid_jax.pixels import to_uint8
from deid_jax.recognisers import Recogniser
from deid_jax.runs import RunFolder
from deid_jax.types import Batch, NumpyArray
from experiments._common import machine
from experiments._common.terminal import Update
from experiments._compare.trials import Attempt, Goal, Trial
from experiments._peers.least_distortion import PEERS, import_libraries

Progress: TypeAlias = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class ComparisonPlan:
    """The comparison: our methods, peers, numbers of gradients, targets, the reference."""

    methods: tuple[str, ...]
    peers: tuple[str, ...]
    num_steps: tuple[int, ...]
    targets: tuple[str, ...]
    reference: str

    @property
    def num_trials(self) -> int:
        """Rows of the table."""
        runs = len(self.methods) + len(self.peers)
        return runs * len(self.num_steps) * len(self.targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """All trials of a plan, on the same images.

    Attributes:
      plan: the trials.
      faces: the images.
      recogniser: the recogniser that our attacks run on, and that judges all trials.
      model: its name.
      seed: decides targets and all other random choices.
      quantize: whether our attacks finish on the 8-bit grid.
      batch_size: images per batch; None chooses what suits the device.
      images: folder for the images; None keeps none.
    """

    plan: ComparisonPlan
    faces: FaceDataset
    recogniser: Recogniser
    model: str
    seed: int
    quantize: bool
    batch_size: int | None
    images: RunFolder | None

    def trials(self, update: Update) -> list[Trial]:
        """Runs our trials, then the peers', target by target; `update` moves the bar."""
        found: list[Trial] = []
        plan, faces = self.plan, self.faces
        bench = PeerBench(self) if plan.peers else None
        for target in plan.targets:
            goal: Goal | None = None
            for name, num_steps in itertools.product(plan.methods, plan.num_steps):
                text = f"{name}-{num_steps}-{target}"
                with self._keeping(text) as keep:
                    progress = self._progress(update, len(found), text)
                    records, seconds = self._ours(name, num_steps, target, keep, progress)
                goal = goal or Goal.of(target, records, faces)
                lines = goal.scored([Attempt.of(record) for record in records], faces)
                found.append(Trial(target, "deid_jax", name, num_steps, lines, seconds))
            for name, num_steps in itertools.product(plan.peers, plan.num_steps):
                # There is always at least one of our methods.
                assert bench is not None and goal is not None
                text = f"{name}-{num_steps}-{target}"
                with self._keeping(text) as keep:
                    progress = self._progress(update, len(found), text)
                    attempts, seconds = bench.run(name, num_steps, goal, keep, progress)
                lines, library = goal.scored(attempts, faces), PEERS[name].library
                found.append(Trial(target, library, name, num_steps, lines, seconds))
        return found

    def _progress(self, update: Update, trials_done: int, text: str) -> Progress:
        each = len(self.faces)
        done, total = each * trials_done, self.plan.num_trials * each
        update(done, total, text)
        return lambda own, _: update(done + own, total, text)

    def _ours(
        self, name: str, num_steps: int, target: str, keep: Keep, progress: Progress
    ) -> tuple[list[ImageRecord], float]:
        """The records and the time of one of our methods."""
        protocol = Protocol(
            target=target, quantize=self.quantize, batch_size=self.batch_size, seed=self.seed
        )
        config = ATTACKS[name].config(num_steps=num_steps)
        evaluation = Evaluation(self.recogniser, self.faces, name, config, protocol)
        records, timing = evaluation.records(keep=keep, progress=progress)
        return records, timing.attack_seconds

    @contextlib.contextmanager
    def _keeping(self, trial: str) -> Iterator[Keep]:
        """Writes images as PNG and reads them back; in a temporary folder if none is given."""
        names = self.faces.pictures
        with contextlib.ExitStack() as stack:
            folder = self.images
            if folder is None:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                folder = stack.enter_context(RunFolder(scratch / "images", ["images"]))
            written = folder
            yield lambda index, pixels: written.write_png(
                f"images/{trial}/{names[index]}.png", pixels
            )


class PeerBench:
    """Runs peers on the images of a comparison, against the recogniser's PyTorch twin.

    Args:
      compared: the comparison.
    """

    def __init__(self, compared: Comparison):
        from experiments._peers import twins

        import_libraries(compared.plan.peers)
        twins.configure_torch("float32", machine.threads())
        self._compared = compared
        variables = compared.recogniser.variables
        self._variables = jax.device_put(variables)
        twin = twins.twin(compared.model, jax.device_get(variables))
        self._twin = twin.to(twins.torch_device())

    def run(
        self, name: str, num_steps: int, goal: Goal, keep: Keep, progress: Progress
    ) -> tuple[list[Attempt], float]:
        """De-identifies the data set with a peer; the recogniser judges the results.

        Args:
          name: a key of `PEERS`.
          num_steps: gradients per image.
          goal: the labels aimed at.
          keep: called with every 8-bit image; what it returns is measured.
          progress: called with (images done, images in all).

        Returns:
          An attempt per image, in the data set's order, and the seconds of the attack.
        """
        from experiments._peers.peer_runs import run_peer

        faces = self._compared.faces
        attempts: list[Attempt] = []
        seconds, total = 0.0, len(faces)
        size = self._compared.batch_size or default_batch_size(faces.image_size, total)
        for batch in loader.in_order(faces, loader.even_batch_size(total, size)):
            real = np.flatnonzero(batch.mask)
            positions = np.asarray(batch.position)[real]
            result = run_peer(
                name,
                self._twin,
                np.asarray(batch.image)[real],
                goal.labels[positions],
                targeted=goal.targeted,
                num_steps=num_steps,
                seed=self._compared.seed,
            )
            images = np.array(batch.image)
            images[real] = result.images
            measured = self._measured(images, batch, goal, keep)
            attempts += [
                Attempt(*metrics, result.num_gradients, result.num_forwards, bool(claimed))
                for metrics, claimed in zip(measured, result.success, strict=True)
            ]
            seconds += result.seconds
            progress(len(attempts), total)
        return attempts, seconds

    def _measured(
        self, images: NumpyArray, batch: Batch, goal: Goal, keep: Keep
    ) -> list[tuple[ImageMetrics, ImageMetrics]]:
        """The measured float and 8-bit results of a batch, without padding."""
        recogniser, persons = self._compared.recogniser, self._compared.faces.persons
        kept = np.array(to_uint8(jnp.asarray(images)))
        places = np.flatnonzero(batch.mask)
        for place in places:
            kept[place] = keep(int(batch.position[place]), kept[place])
        results = jax.device_get(
            (
                measure_float(self._variables, images, batch, model=recogniser.model),
                measure_uint8(self._variables, kept, batch, model=recogniser.model),
            )
        )
        measured = []
        for place in places:
            label = goal.labels[int(batch.position[place])]
            target = int(label) if goal.targeted else None
            of_image = jax.tree.map(operator.itemgetter(int(place)), results)
            float_result, uint8_result = (image_metrics(r, persons, target) for r in of_image)
            measured.append((float_result, uint8_result))
        return measured
