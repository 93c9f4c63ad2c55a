"""Objectives: what an attack minimises.

Classification losses and embedding losses, alone, in ensembles and in expectation over
transforms. Imports `transforms` and base modules.
"""

from deid_jax.objectives.classification import OBJECTIVES, LogitsFn, cross_entropy, margin

__all__ = ["OBJECTIVES", "LogitsFn", "cross_entropy", "margin"]
