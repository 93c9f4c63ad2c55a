"""Evaluation: one compiled batch program, runs over a data set, sweeps.

Also whether attributes survive, and the records of all of these. Imports `recognisers` and what
is below.
"""

from deid_jax.evaluation.run import (
    NUM_KEEPERS,
    Keep,
    Timing,
    batch_shapes,
    batch_size_for,
    check_numbers,
    default_batch_size,
    evaluate,
    evaluate_spans,
    most_steps,
    ready_variables,
    wanted_batch_size,
)

__all__ = [
    "NUM_KEEPERS",
    "Keep",
    "Timing",
    "batch_shapes",
    "batch_size_for",
    "check_numbers",
    "default_batch_size",
    "evaluate",
    "evaluate_spans",
    "most_steps",
    "ready_variables",
    "wanted_batch_size",
]
