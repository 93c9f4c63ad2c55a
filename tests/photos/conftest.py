import pytest


@pytest.fixture(scope="module", autouse=True)
def _attacked_lightly(light_attack):
    return light_attack
