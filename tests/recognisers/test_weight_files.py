"""Reading weights: what a file gives, and files that are damaged or of another kind."""

import io

import numpy as np
import pytest

from deid_jax.recognisers.weight_files import read_weights
from tests.helpers import refused


def _integer(value):
    digits = abs(value).to_bytes(max(1, (value.bit_length() + 7) // 8), "little")
    return bytes([len(digits) | (0x80 if value < 0 else 0)]) + digits


def _layer(tag, array, *before):
    name = tag.encode()
    head = _integer(len(name)) + name + b"".join(map(_integer, before))
    sizes = b"".join(map(_integer, (2, array.size, 1, 1, 1)))
    # dlib follows every tensor with settings of the layer: here some that look like nothing.
    return head + sizes + array.astype("<f4").tobytes() + _integer(-7) + _integer(300)


def dlib_file(arrays):
    """The bytes of a network of dlib's with these arrays; others' layers are between them."""
    file = io.BytesIO()
    file.write(_integer(1) + b"\x01\x0dloss_metric_2" + b"\x01\x05relu_")
    for name, array in arrays.items():
        tag = {"con": "con_4", "affine": "affine_", "fc": "fc_2"}[name.partition(".")[0]]
        file.write(_layer(tag, array, *((128, 256) if tag == "fc_2" else ())))
    return file.getvalue()


def _arrays():
    random = np.random.default_rng(0)
    sizes = {"con.0": 5, "affine.0": 4, "con.1": 300, "affine.1": 2, "fc.0": 7}
    return {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()}


def test_files_give_their_arrays(tmp_path):
    npz, dat = tmp_path / "weights.npz", tmp_path / "weights.dat"
    np.savez(npz, **_arrays())
    dat.write_bytes(dlib_file(_arrays()))
    for path in (npz, dat):
        found = read_weights(path)
        assert list(found) == list(_arrays())
        for name, array in _arrays().items():
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "text", "cut", "flipped", "npy", "folder"]
)
def test_bad_npz_files_end_in_one_line(tmp_path, damage):
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, **_arrays())
    whole = path.read_bytes()
    if damage == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage in ("missing", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes(64) + whole[middle + 64 :]
        path.write_bytes(
            {"empty": b"", "text": b"no weights", "cut": whole[:middle], "flipped": flipped}[
                damage
            ]
        )
    with refused(f"weights {path}"):
        read_weights(path)


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{"conv1.0.weight": np.array([{}], object)})
    with refused("no readable"):
        read_weights(path)


_TENSOR = b"\x01\x05con_4\x01\x02"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "are no network of dlib's"),
        (b"no weights", "are no network of dlib's"),
        (dlib_file(_arrays())[:-20], "layer fc.0 has .* bytes instead of 28"),
        (
            b"\x01\x05con_4\x01\x03" + 4 * _integer(1),
            "layer con.0 does not begin with a tensor",
        ),
        # A tensor of 2**64 numbers, for which nothing is allocated.
        (_TENSOR + 2 * _integer(2**32) + 2 * _integer(1), "instead of 73786976294838206464"),
        (_TENSOR + _integer(-3) + 3 * _integer(1), "does not begin with a tensor"),
        (_TENSOR + b"\x0f" + bytes(15), "layer con.0 holds no integer"),
        (_TENSOR + b"\x00", "layer con.0 holds no integer"),
        (_TENSOR + b"\x04\x01", "layer con.0 holds no integer"),
        (_TENSOR, "layer con.0 holds no integer"),
    ],
)
def test_bad_files_of_dlib_end_in_one_line(tmp_path, content, message):
    path = tmp_path / "weights.dat"
    path.write_bytes(content)
    with refused(f"weights {path} .*{message}"):
        read_weights(path)


def test_larger_files_than_any_recogniser_are_not_read(tmp_path):
    path = tmp_path / "weights.dat"
    with path.open("wb") as file:
        file.truncate(2**40)
    with refused("too large"):
        read_weights(path)
