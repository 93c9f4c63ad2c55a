"""An evaluation runs a method against a recogniser on a data set."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from deid_jax.attacks import METHODS
from deid_jax.data import loader
from deid_jax.data.dataset import FaceDataset
from deid_jax.devices import programs, sharding
from deid_jax.evaluation import batch as batches
from deid_jax.evaluation.batch import BatchProgram, BatchResult, PlacedProgram
from deid_jax.evaluation.batch_loop import BatchLoop, Keep, Timing, as_it_is, show_nothing
from deid_jax.evaluation.measuring import Predictions
from deid_jax.evaluation.records import ImageRecord
from deid_jax.models import prepare
from deid_jax.pixels import Pixels
from deid_jax.recognisers import Recogniser
from deid_jax.runs import package_versions
from deid_jax.types import Config, Model, Variables

# The number of images × pixels × steps from which prepared kernels save as much time as it
# takes to compile their larger program, a few seconds: say 512 steps on one image of 64 px.
_MIN_WORK_TO_PREPARE = 2**21


class WeightedModel(NamedTuple):
    """A network that gives logits, and its weights: a `Recogniser` without description."""

    model: Model
    variables: Variables


class ExampleImages(NamedTuple):
    """P images of an evaluation; with S numbers of steps, a leading axis S comes before P.

    `images` are uint8[P, H, W, 3]; `clean` are the predictions for the originals, always [P].
    """

    images: Pixels
    predictions: Predictions
    clean: Predictions


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A method, a recogniser, a data set, and everything else that decides the result.

    The recogniser is attacked and also judges. `memory` is how many bytes a batch may take on a
    device; None: what is free.
    """

    recogniser: Recogniser | WeightedModel
    dataset: FaceDataset
    method: str
    config: Config
    protocol: batches.Protocol = dataclasses.field(default_factory=batches.Protocol)
    mesh: Mesh = dataclasses.field(default_factory=sharding.local_mesh)
    memory: int | None = None

    def at(self, settings: Mapping[str, object]) -> "Evaluation":
        """The same with other settings of the method; those not given are its defaults."""
        return dataclasses.replace(self, config=METHODS[self.method].config(**settings))

    @property
    def program(self) -> BatchProgram:
        """Everything that decides the compiled program."""
        own = self.protocol
        quantize = METHODS[self.method].quantizes if own.quantize is None else own.quantize
        return BatchProgram(
            model=self.recogniser.model,
            method=self.method,
            target=own.target,
            init=own.init,
            quantize=quantize,
            precision=own.precision,
            mesh=self.mesh,
        )

    @property
    def num_steps(self) -> int:
        """The largest number of steps that the config asks for; 0 if the method has none."""
        steps = getattr(self.config, "num_steps", 0)
        return max(steps) if isinstance(steps, tuple) else steps

    def placed(self, jitted: jax.stages.Wrapped, *, num_settings: int = 1) -> PlacedProgram:
        """A function of `deid_jax.evaluation.batch` with its arguments on the devices.

        Kernels are prepared if attacking the data set `num_settings` times repays it.
        """
        variables, size = self.recogniser.variables, self.dataset.image_size
        work = len(self.dataset) * size**2 * self.num_steps * num_settings
        if work >= _MIN_WORK_TO_PREPARE:
            variables = prepare(variables)
        return PlacedProgram(
            jitted=jitted,
            program=self.program,
            variables=sharding.place_variables(variables, self.mesh),
            config=self.config,
            key=sharding.place_everywhere(jax.random.key(self.protocol.seed), self.mesh),
            image_size=size,
        ).at(self.config)

    def batch_size(self, num_images: int) -> int:
        """Images per call, over all devices, that suit the devices, memory permitting."""
        size = self.protocol.batch_size
        if size is None:
            own = default_batch_size(self.dataset.image_size, num_images)
            size = sharding.num_parts(self.mesh) * own
        return self.even_batch_size(num_images, sharding.whole_parts(self.mesh, size))

    def even_batch_size(self, num_images: int, size: int) -> int:
        """The batch size near `size` with the least padding, in equal parts per device."""
        even = loader.even_batch_size(num_images, size)
        return sharding.whole_parts(self.mesh, even)

    def records(
        self, *, keep: Keep = as_it_is, progress: Callable[[int, int], object] = show_nothing
    ) -> tuple[list[ImageRecord], Timing]:
        """De-identifies the whole data set: see `over`.

        Returns:
          One record per image, in the data set's order, and the timing.
        """
        records: list[ImageRecord] = []
        whole = [range(len(self.dataset))]
        timing = self.over(
            whole, lambda number, more: records.extend(more), keep=keep, progress=progress
        )
        return records, timing

    def over(
        self,
        spans: Sequence[range],
        finish: Callable[[int, list[ImageRecord]], object],
        *,
        keep: Keep = as_it_is,
        progress: Callable[[int, int], object] = show_nothing,
        longest: int | None = None,
    ) -> Timing:
        """De-identifies parts of the data set, on all devices of this process.

        The next batch is read and attacked while the images of the last one are saved. The
        program is compiled once per shape and process; at most two batches and the records
        of one span are held in memory.

        Args:
          spans: the positions, in order; no batch crosses from one span into the next.
          finish: called with a span's number and records, one per image that could be read,
            once all its images are saved.
          keep: called with every 8-bit image, in several threads; what it returns is measured.
          progress: called with (images done, images in all).
          longest: images in the longest span of the whole job, of which this call may be a
            part. It decides the batch size, and a different batch size rounds differently.
            None: the longest of `spans`.

        Raises:
          InputError: a single image does not fit into memory, an image cannot be read (and
            the data set does not leave such images out), or the recogniser gives NaN or
            infinity.

        Warns:
          UserWarning: a batch did not fit, and a smaller batch size is used.
        """
        start = time.perf_counter()
        placed = self.placed(batches.run_donated)
        loop = BatchLoop(placed, self.dataset, spans, finish, keep, progress)
        loop.timing = Timing(compile_seconds=time.perf_counter() - start)
        longest = longest or max(map(len, spans), default=0)
        parts = sharding.num_parts(self.mesh)
        size = self.batch_size(longest)
        while loop.left():
            size = self.even_batch_size(longest, max(parts, size // parts * parts))
            try:
                with programs.watching_memory():
                    smaller = loop.prepare_batches(size, self.memory)
                    if smaller is None:
                        loop.over_batches(size)
                    else:
                        size = smaller
            except programs.OutOfMemoryError:
                size = programs.half_of(size, least=parts)
        return loop.timing

    def examples(self, indices: Sequence[int]) -> ExampleImages:
        """Computes some of the images that `over` would, without the others.

        The config's `num_steps` may hold several numbers.
        """
        # One device is enough, unless the recogniser is divided over several.
        alone = self.mesh.shape[sharding.MODEL] == 1
        mesh = sharding.narrowed(self.mesh, 1) if alone else self.mesh
        few = dataclasses.replace(self, dataset=self.dataset.take(indices), mesh=mesh)
        size = sharding.whole_parts(mesh, len(indices))
        batch = next(loader.in_order(few.dataset, size))
        # Every image's target and noise depend on its position in the whole set.
        batch = batch._replace(position=np.asarray(indices, np.int32)[batch.position])
        result: BatchResult = few.placed(batches.run_batch)(batch)
        images, predictions, clean = jax.device_get(
            (result.uint8, result.uint8_result.predictions, result.clean)
        )
        count = len(indices)
        return ExampleImages(
            images[..., :count, :, :, :],
            jax.tree.map(lambda entry: entry[..., :count], predictions),
            jax.tree.map(lambda entry: entry[:count], clean),
        )


def facts_of_data(dataset: FaceDataset, recogniser: Mapping[str, object]) -> dict[str, object]:
    """Everything apart from method and protocol that decides a record, as JSON."""
    return {
        "versions": package_versions(),
        "recogniser": recogniser,
        "images": dataset.fingerprint(),
        "data set": [dataset.name, dataset.split, dataset.provenance],
    }


def default_batch_size(image_size: int, num_images: int) -> int:
    """Images per call and device that suit the device, memory permitting.

    On CPUs a small batch keeps all cores busy and fits the caches. Accelerators want large
    batches, but several of them (four, if large enough), so that reading and writing overlap
    with computing.
    """
    if jax.default_backend() != "cpu":
        return min(4096, max(64, -(-num_images // 4)))
    return max(16, min(64, 2**18 // image_size**2))
