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
from experiments._compare.trials import Goal, Trial, TrialRecord
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """All trials of a plan, on the same images.

    Attributes:
      recogniser: the recogniser that our attacks run on, and that judges all trials.
      model: its name.
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
        plan, each = self.plan, len(self.faces)
        names = (*plan.methods, *plan.peers)
        total = each * len(names) * len(plan.num_steps) * len(plan.targets)
        bench = PeerBench(self) if plan.peers else None
        for target in plan.targets:
            goal: Goal | None = None
            for name, num_steps in itertools.product(names, plan.num_steps):
                text, done = f"{name}-{num_steps}-{target}", each * len(found)
                update(done, total, text)

                def progress(own: int, _: int, done: int = done, text: str = text) -> None:
                    update(done + own, total, text)

                with self._keeping(text) as keep:
                    if name in plan.methods:
                        own, seconds = self._ours(name, num_steps, target, keep, progress)
                        goal = goal or Goal.of(target, own, self.faces)
                        records = [
                            goal.record(
                                place,
                                (one.float_result, one.uint8_result),
                                one.num_gradients,
                                one.num_forwards,
                            )
                            for place, one in enumerate(own)
                        ]
                    else:
                        # There is always at least one of our methods, and they come first.
                        assert bench is not None and goal is not None
                        records, seconds = bench.run(name, num_steps, goal, keep, progress)
                library = "deid_jax" if name in plan.methods else PEERS[name].library
                found.append(Trial(target, library, name, num_steps, records, seconds))
        return found

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
        names = self.faces.image_names
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
    """Runs peers on the images of a comparison, against the recogniser's PyTorch twin."""

    def __init__(self, compared: Comparison):
        from experiments._peers import twins

        import_libraries(compared.plan.peers)
        twins.configure_torch("float32", machine.threads())
        self._compared = compared
        self._variables = jax.device_put(compared.recogniser.variables)
        twin = twins.twin(compared.model, jax.device_get(compared.recogniser.variables))
        self._twin = twin.to(twins.torch_device())

    def run(
        self, name: str, num_steps: int, goal: Goal, keep: Keep, progress: Progress
    ) -> tuple[list[TrialRecord], float]:
        """De-identifies the data set with a peer; the recogniser judges the results.

        `keep` is called with every 8-bit image, and what it returns is measured. Gives a record
        per image, in the data set's order, and the seconds of the attack.
        """
        from experiments._peers.peer_runs import run_peer

        faces = self._compared.faces
        records: list[TrialRecord] = []
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
            spent = result.num_gradients, result.num_forwards
            every = zip(positions.tolist(), measured, result.success, strict=True)
            records += [goal.record(n, pair, *spent, bool(hit)) for n, pair, hit in every]
            seconds += result.seconds
            progress(len(records), total)
        return records, seconds

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
