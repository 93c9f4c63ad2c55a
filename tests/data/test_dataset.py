import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.data.dataset import LEVELS, on_grid, to_uint8


def test_levels_are_what_an_8_bit_file_reads_as():
    np.testing.assert_array_equal(LEVELS, np.arange(256).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(_in_a_loop(f))])
def test_grid_is_that_of_files_bit_for_bit(wrap):
    """Compiled or not, and in a loop: rounding to half, ties to even levels."""
    values = np.concatenate(
        [LEVELS, np.random.default_rng(0).random(100_000, np.float32), [0.5 / 255, 1.5 / 255]]
    ).astype(np.float32)
    found = np.asarray(wrap(on_grid)(jnp.asarray(values)))
    assert found.dtype == np.float32
    wanted = np.rint(np.float32(255) * values).astype(np.uint8)
    np.testing.assert_array_equal(found, wanted.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(np.asarray(to_uint8(jnp.asarray(found))), wanted)


def _in_a_loop(function):
    return lambda values: jax.lax.fori_loop(0, 3, lambda _, now: function(now), values)


def test_what_is_no_number_stays_none():
    assert np.isnan(np.asarray(on_grid(jnp.float32([np.nan, 0.5])))[0])
