import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.arrays import Bracket

ROOTS = np.float32([0.3, 1.7])


def halved(bracket, times):
    for _ in range(times):
        middle = bracket.middle()
        bracket = bracket.narrowed(middle, middle < ROOTS)
    return bracket


@pytest.mark.parametrize("numpy", [jnp, np])
def test_bisection_ends_around_where_the_condition_changes(numpy):
    bracket = halved(Bracket(numpy.zeros(2), numpy.full(2, 2.0)), 10)
    assert (bracket.holds < ROOTS).all() and (bracket.fails >= ROOTS).all()
    np.testing.assert_allclose(bracket.fails - bracket.holds, 2**-9)
    assert isinstance(bracket.holds, np.ndarray) == (numpy is np)


def test_bisection_is_the_same_when_traced():
    bracket = Bracket(jnp.zeros(2), jnp.full(2, 2.0))
    traced = jax.jit(lambda bracket: halved(bracket, 10))(bracket)
    np.testing.assert_array_equal(traced.holds, halved(bracket, 10).holds)


def test_infinite_ends_are_sought_outwards():
    bracket = Bracket(np.array([np.inf, 4.0]), np.array([1.0, 2.0]))
    assert bracket.middle(outwards=3 * bracket.fails).tolist() == [3, 3]
