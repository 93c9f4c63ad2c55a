"""What `experiments.compare` runs: each method and peer at each target and number of steps."""

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deid_jax.attacks import ATTACKS
from deid_jax.data import FaceDataset
from deid_jax.evaluation import Keep, evaluate
from deid_jax.evaluation.batch import Protocol
from deid_jax.recognisers import Recogniser
from deid_jax.runs.run_folder import RunFolder
from experiments._common.cli import Update
from experiments._compare.compare_peers import PEERS, Bench, Task
from experiments._compare.compare_tables import Record, Trial, scored


class Plan(NamedTuple):
    """What is compared: ours, peers, numbers of gradients, targets, the reference."""

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


class Goal(NamedTuple):
    """What every method is to reach at one target.

    Attributes:
      target: a choice of `deid_jax.evaluation.batch.TARGETS`.
      labels: int32[N], the labels aimed at; the true ones where the attack is untargeted.
      aims: the persons aimed at; empty names where the attack is untargeted.
      already: bool[N], whether an original meets the goal by itself.
    """

    target: str
    labels: np.ndarray
    aims: tuple[str, ...]
    already: np.ndarray

    @classmethod
    def of(cls, target: str, records: Sequence[Record], faces: FaceDataset) -> "Goal":
        """The goal of a run of ours, from its records: targets are drawn in `evaluate`."""
        aims = tuple(record["target"] for record in records)
        if target == "none":
            already = [record["clean_misclassified"] for record in records]
            return cls(target, faces.labels, aims, np.array(already))
        labels = np.array([faces.persons.index(aim) for aim in aims], np.int32)
        already = [record["clean_prediction"] == record["target"] for record in records]
        return cls(target, labels, aims, np.array(already))

    def scored(self, records: Sequence[Record], faces: FaceDataset) -> list[Record]:
        """The lines of `per_image.csv` of a run."""
        every = zip(records, faces.pictures, self.aims, self.already.tolist(), strict=True)
        return [scored(*line) for line in every]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """All trials of a plan, on the same pictures.

    Attributes:
      plan: what is compared.
      faces: the pictures.
      recogniser: who judges.
      model: its name.
      seed: decides targets and whatever else is drawn.
      quantize: whether ours are finished on the 8-bit grid.
      batch_size: pictures at a time; what suits the device if None.
      images: where pictures are kept; nowhere if None.
    """

    plan: Plan
    faces: FaceDataset
    recogniser: Recogniser
    model: str
    seed: int
    quantize: bool
    batch_size: int | None
    images: RunFolder | None

    def trials(self, update: Update) -> list[Trial]:
        """Ours, then the peers, target by target; `update` moves the progress bar."""
        found: list[Trial] = []
        each, total = len(self.faces), self.plan.num_trials * len(self.faces)
        names = (*self.plan.methods, *self.plan.peers)
        bench = None
        if self.plan.peers:
            bench = Bench(self.recogniser, self.model, self.faces, self.plan.peers)
        for target in self.plan.targets:
            goal = None
            for name, num_steps in itertools.product(names, self.plan.num_steps):
                done, text = each * len(found), f"{name}, {num_steps}, {target}"

                def progress(own: int, _: int, done: int = done, text: str = text) -> None:
                    update(done + own, total, text)

                progress(0, each)
                with self._keeping(f"{name}-{num_steps}-{target}") as keep:
                    if name in ATTACKS:
                        ran = self._ours(name, num_steps, target, keep, progress)
                        goal = goal or Goal.of(target, ran[0], self.faces)
                    else:
                        # Ours come first, and there is at least one.
                        assert bench is not None and goal is not None
                        ran = bench.run(self._task(name, num_steps, goal), keep, progress)
                library = PEERS[name].library if name in PEERS else "deid_jax"
                lines = goal.scored(ran[0], self.faces)
                found.append(Trial(target, library, name, num_steps, lines, ran[1]))
        return found

    def _ours(
        self,
        name: str,
        num_steps: int,
        target: str,
        keep: Keep,
        progress: Callable[[int, int], Any],
    ) -> tuple[list[Record], float]:
        """Records and seconds of one of our methods."""
        protocol = Protocol(
            target=target, quantize=self.quantize, batch_size=self.batch_size, seed=self.seed
        )
        records, timing = evaluate(
            self.recogniser.model,
            self.recogniser.variables,
            self.faces,
            name,
            ATTACKS[name].config(num_steps=num_steps),
            protocol,
            keep=keep,
            progress=progress,
        )
        return [record.to_row() for record in records], timing.attack_seconds

    def _task(self, name: str, num_steps: int, goal: Goal) -> Task:
        return Task(
            name=name,
            aims=goal.labels,
            targeted=goal.target != "none",
            num_steps=num_steps,
            seed=self.seed,
            batch_size=self.batch_size,
        )

    @contextlib.contextmanager
    def _keeping(self, trial: str) -> Iterator[Keep]:
        """Writes pictures as PNG and reads them back; in a passing folder if none is given."""
        names = self.faces.pictures
        with contextlib.ExitStack() as stack:
            folder = self.images
            if folder is None:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                folder = stack.enter_context(RunFolder(scratch / "pictures", ["images"]))
            written = folder
            yield lambda index, pixels: written.write_png(
                f"images/{trial}/{names[index]}.png", pixels
            )
