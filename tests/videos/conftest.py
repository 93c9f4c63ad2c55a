"""Tests of protection attack with transformations that compile fast."""

import pytest

from deid_jax.photos import crop_attack
from deid_jax.transfer import SurrogateAttack


@pytest.fixture(scope="module", autouse=True)
def light_attack():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crop_attack, "ATTACK", SurrogateAttack(foreseen=("noise", "flip")))
        yield
