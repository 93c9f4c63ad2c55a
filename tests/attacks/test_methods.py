"""Kinds of methods, and what a method knows of its settings."""

import dataclasses

import pytest

from deid_jax.attacks import (
    METHODS,
    Baseline,
    FixedSize,
    FixedSteps,
    LeastPerturbation,
    of_kind,
)
from deid_jax.attacks.pfgvm import PFGVMConfig


@dataclasses.dataclass(frozen=True)
class OnGrid:
    quantize: bool = True


def test_every_method_is_of_one_kind():
    kinds = (FixedSteps, FixedSize, LeastPerturbation, Baseline)
    assert sorted(name for kind in kinds for name in of_kind(METHODS, kind)) == sorted(METHODS)
    for method in METHODS.values():
        assert ("epsilon" in method.settings()) == isinstance(method, FixedSize)


@pytest.mark.parametrize("quantize", [True, False])
def test_methods_that_know_the_grid_are_told_of_it(quantize):
    method = dataclasses.replace(METHODS["pfgvm"], config=OnGrid)
    assert method.quantizes and not METHODS["pfgvm"].quantizes
    assert method.with_quantize(OnGrid(), quantize) == OnGrid(quantize)
    config = PFGVMConfig()
    assert METHODS["pfgvm"].with_quantize(config, quantize) is config
