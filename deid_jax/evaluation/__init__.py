"""Evaluation: one compiled batch program, runs over a data set, sweeps.

Also measures whether attributes survive, and defines the records of all of these. Imports
`recognisers` and the layers below it.
"""

from deid_jax.evaluation.batch import INITS, TARGETS, Protocol, measure_float, measure_uint8
from deid_jax.evaluation.batch_loop import Keep, Timing
from deid_jax.evaluation.evaluating import (
    Evaluation,
    WeightedModel,
    default_batch_size,
    facts_of_data,
)
from deid_jax.evaluation.grids import Settings, grid
from deid_jax.evaluation.measuring import Predictions
from deid_jax.evaluation.outputs import FORMATS
from deid_jax.evaluation.records import (
    ImageRecord,
    Row,
    RunMetrics,
    summary,
)
from deid_jax.evaluation.sharded_run import ProcessTiming, ShardedRun, timing_row
from deid_jax.evaluation.sweeping import sweep

__all__ = [
    "FORMATS",
    "INITS",
    "TARGETS",
    "Evaluation",
    "ImageRecord",
    "Keep",
    "Predictions",
    "ProcessTiming",
    "Protocol",
    "Row",
    "RunMetrics",
    "Settings",
    "ShardedRun",
    "Timing",
    "WeightedModel",
    "default_batch_size",
    "facts_of_data",
    "grid",
    "measure_float",
    "measure_uint8",
    "summary",
    "sweep",
    "timing_row",
]
