"""Programs are compiled once, and their memory is known before they run."""

import jax
import jax.numpy as jnp
import pytest

from deid_jax.devices import programs
from deid_jax.errors import InputError
from tests.helpers import num_compiled

GIB = 2**30


@jax.jit
def _double(x):
    return 2 * x


class _Program:
    """Needs so many bytes."""

    def __init__(self, needed):
        self.needed = needed

    def memory_analysis(self):
        sizes = {"argument": self.needed, "output": 0, "temp": 0, "alias": 0}
        fields = {f"{name}_size_in_bytes": size for name, size in sizes.items()}
        return type("Sizes", (), fields)()


def test_one_compilation_per_shape_and_dtype():
    before = num_compiled()
    first = programs.compile_once(_double, jnp.ones(7))
    assert programs.compile_once(_double, jnp.zeros(7)) is first
    assert programs.compile_once(_double, jax.ShapeDtypeStruct((7,), jnp.float32)) is first
    assert num_compiled() == before + 1
    for other in (jnp.ones(8), jnp.ones(7, jnp.int32)):
        assert programs.compile_once(_double, other) is not first
    assert num_compiled() == before + 3
    assert first(jnp.full(7, 3.0)).tolist() == [6.0] * 7


def test_required_bytes_are_those_of_the_arrays():
    program = programs.compile_once(_double, jnp.ones((100, 1000)))
    arrays = 2 * 4 * 100 * 1000
    assert arrays <= programs.required_bytes(program) < 1.1 * arrays


def test_free_bytes_are_the_devices_or_the_systems(monkeypatch):
    free = programs.free_bytes()
    assert free is None or free > 2**20

    class Device:
        def memory_stats(self):
            return {"bytes_limit": 10 * GIB, "bytes_in_use": 2 * GIB}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert programs.free_bytes() == int(0.9 * 8 * GIB)


def test_a_program_that_fits_keeps_its_size():
    assert programs.smaller_to_fit(64, _Program(GIB), GIB) is None
    assert programs.smaller_to_fit(64, _Program(GIB), None) is None


@pytest.mark.parametrize(
    ("size", "needed", "limit", "smaller"), [(64, 4, 1, 16), (64, 5, 4, 51), (3, 400, 1, 1)]
)
def test_a_smaller_batch_is_in_proportion(size, needed, limit, smaller):
    with pytest.warns(UserWarning, match=rf"a batch of {size} needs {needed} GiB of memory"):
        found = programs.smaller_to_fit(size, _Program(needed * GIB), limit * GIB)
    assert found == smaller


def test_what_not_even_one_picture_has_is_named():
    with pytest.raises(InputError, match="one image needs 3 GiB of memory, and 1 GiB are free"):
        programs.smaller_to_fit(1, _Program(3 * GIB), GIB)
    with pytest.raises(InputError, match="one image needs more memory than there is"):
        programs.half_of(1)


def test_only_exhausted_memory_is_taken_for_it():
    with pytest.raises(programs.OutOfMemoryError), programs.watching_memory():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 1 byte")
    with pytest.raises(jax.errors.JaxRuntimeError), programs.watching_memory():
        raise jax.errors.JaxRuntimeError("INTERNAL: no")


def test_a_containers_limit_counts(tmp_path):
    assert programs._free_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    assert programs._free_in_container(tmp_path) == 3 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert programs._free_in_container(tmp_path) is None
