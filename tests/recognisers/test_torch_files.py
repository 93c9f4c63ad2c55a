"""Checkpoints: what torch.save writes is read as torch reads it; what could harm is refused."""

import collections
import importlib
import os
import pickle
import re
import struct
import subprocess
import zipfile

import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.recognisers import torch_files

FORMATS = pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
DTYPES += ["uint8", "bool"]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def save(torch, tmp_path):
    def save(tree, archive=True):
        path = tmp_path / "model.pt"
        torch.save(tree, path, _use_new_zipfile_serialization=archive)
        return path

    return save


def small(torch, seed=0):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def refusal(path):
    """The message with which a file is refused."""
    with pytest.raises(InputError) as refused:
        torch_files.read_arrays(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert str(path) in str(refused.value)
    return str(refused.value)


@FORMATS
def test_state_dict_is_read_as_torch_reads_it(torch, save, archive):
    layers = [torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.PReLU(5)]
    path = save(torch.nn.Sequential(*layers).state_dict(), archive)
    state, arrays = torch.load(path, weights_only=True), torch_files.read_arrays(path)
    assert list(arrays) == list(state)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, state[name].numpy(), strict=True)
        assert not array.flags.writeable


@FORMATS
def test_dtypes_views_and_nested_dicts(torch, save, archive):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = {
        "permuted": base.permute(2, 0, 1),
        "steps": base[::2, 1::2, 1:],
        "scalar": base[2, 3, 4],
        "empty": base[:0],
        "column": torch.arange(3.0)[:, None].expand(3, 1),
    }
    dtypes = {name: (small(torch) * 50).to(getattr(torch, name)) for name in DTYPES}
    state = collections.OrderedDict(w=torch.nn.Parameter(small(torch)))
    state._metadata = {"": {"version": 2}}
    tree = {
        "epoch": 68,
        "names": ["a", ("b", None, True)],
        "shape": base.shape,
        "net": state,
        "moments": {0: {"m": small(torch, 2)}},
    }
    arrays = torch_files.read_arrays(save(views | dtypes | tree, archive))
    expected = views | dtypes | {"net.w": state["w"].detach(), "moments.0.m": small(torch, 2)}
    expected["bfloat16"] = expected["bfloat16"].float()
    assert list(arrays) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy(), strict=True)


class Evil:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive_of(path, pickled, entries=(), **options):
    """A ZIP archive as torch.save lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("model/data.pkl", pickled)
        for name, content in dict(entries).items():
            archive.writestr(f"model/{name}", content)
    return path


def legacy_of(path, pickled, keys=(), tail=b""):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    start = b"".join(pickle.dumps(part, 2) for part in parts)
    path.write_bytes(start + pickled + pickle.dumps(list(keys), 2) + tail)
    return path


def bare(path, pickled):
    path.write_bytes(pickled)
    return path


@pytest.mark.parametrize("wrap", [archive_of, legacy_of, bare])
def test_functions_are_refused_by_name_and_not_called(tmp_path, wrap):
    marker = tmp_path / "marker"
    evils = {
        "posix.system": Evil(os.system, f"touch {marker}"),
        "builtins.eval": Evil(eval, f"open({str(marker)!r}, 'w').close()"),
        "builtins.getattr": Evil(getattr, "", "join"),
        "importlib.import_module": Evil(importlib.import_module, "antigravity"),
        "subprocess.Popen": Evil(subprocess.Popen, ["touch", str(marker)]),
    }
    for name, evil in evils.items():
        for tree in (evil, {"weights": [evil]}):
            pickled = pickle.dumps(tree, 4 if wrap is archive_of else 2, fix_imports=False)
            path = wrap(tmp_path / "evil.pt", pickled)
            assert f"is refused: it asks for {name}" in refusal(path)
    assert not marker.exists()


CONTENT = np.arange(4, dtype="<f4").tobytes()
FLOATS = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def storage(numel=4, key=b"0", kind=FLOATS):
    size = b"J" + struct.pack("<i", numel)
    return (
        b"(X\x07\0\0\0storage" + kind + b"X\x01\0\0\0" + key + b"X\x03\0\0\0cpu" + size + b"tQ"
    )


def tensor(numel=4, offset=0, shape=(4,), strides=(1,), of=None):
    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    place = b"J" + struct.pack("<i", offset)
    arguments = place + numbers(shape) + numbers(strides) + b"\x89N"
    return REBUILD + b"(" + (of or storage(numel)) + arguments + b"tR"


def pickled(value):
    """{"x": value}"""
    return b"\x80\x02}X\x01\0\0\0x" + value + b"s."


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (tensor(shape=(5,)), "larger than its storage"),
        (tensor(offset=1), "larger than its storage"),
        (tensor(shape=(2, 2), strides=(1, 9)), "larger than its storage"),
        (tensor(shape=(2**30, 2**30), strides=(0, 0)), "larger than its storage"),
        (tensor(offset=-1, shape=(2,)), "impossible shape"),
        (tensor(offset=3, strides=(-1,)), "impossible shape"),
        (tensor(numel=3, shape=(3,)), "16 bytes instead of 12"),
        (tensor(numel=2**30), "16 bytes instead of 4294967296"),
        (tensor(numel=-1), "16 bytes instead of -4"),
        (tensor(of=b"N"), "damaged"),
        (tensor(of=storage(key=b"7")), "data/7"),
        (tensor(of=storage(kind=b"N")), "storage of unknown type"),
        # What the file is given cannot be changed by it.
        (tensor() + b"}X\x05\0\0\0shapeK\x01sb", "damaged"),
        (REBUILD + b"N}X\x0c\0\0\0__defaults__)s\x86b", "damaged"),
        (b"ctorch\nserialization.load\n", "torch.serialization.load"),
        (b"X\xff\xff\xff\x7fabc", "damaged"),
    ],
)
def test_pickles_that_no_torch_writes_are_refused(tmp_path, value, reason):
    entries = {"data/0": CONTENT}
    good = archive_of(tmp_path / "good.pt", pickled(tensor()), entries)
    assert re.search(reason, refusal(archive_of(tmp_path / "m.pt", pickled(value), entries)))
    np.testing.assert_array_equal(
        torch_files.read_arrays(good)["x"], np.arange(4, dtype=np.float32)
    )


def test_sizes_in_legacy_files_are_compared_with_the_file(tmp_path):
    path = tmp_path / "m.pt"
    claim = struct.pack("<q", 4)
    legacy_of(path, pickled(tensor(offset=1, shape=(3,))), ["0"], claim + CONTENT)
    np.testing.assert_array_equal(torch_files.read_arrays(path)["x"], [1, 2, 3])
    wrong = legacy_of(path, pickled(tensor()), ["0"], struct.pack("<q", 5) + CONTENT)
    assert "another size" in refusal(wrong)
    huge = pickled(tensor(numel=2**30))
    long = legacy_of(path, huge, ["0"], struct.pack("<q", 2**30) + CONTENT)
    assert "16 bytes instead of 4294967296" in refusal(long)
    assert "damaged" in refusal(legacy_of(path, pickled(tensor())))


def test_other_files_are_refused(torch, save, tmp_path):
    assert "has no tensors" in refusal(save([small(torch)]))
    assert "has no tensors" in refusal(save({"epoch": 1}))
    assert "asks for torch.nn.modules.linear.Linear" in refusal(save(torch.nn.Linear(2, 2)))
    assert "cannot be read: No such file" in refusal(tmp_path / "missing.pt")
    path = tmp_path / "m.pt"
    for content in (b"", b"hello", b"\x89HDF\r\n\x1a\n" * 9, b"PK\x03\x04", b"\x80\x02K\x07."):
        refusal(bare(path, content))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"")
    assert "not of torch.save" in refusal(path)
    big = {"byteorder": "big", "data/0": CONTENT}
    assert "big-endian" in refusal(archive_of(path, pickled(tensor()), big))
    # So that no file grows when it is read.
    zeros = {"data/0": b"\0" * 4 * 2**20}
    made = pickled(tensor(numel=2**20, shape=(2**20,)))
    path = archive_of(path, made, zeros, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(path)


@FORMATS
def test_truncated_and_damaged_files_are_read_or_refused(torch, save, archive):
    """Whatever byte is wrong: arrays of some numbers, or one line."""
    path = save({"a": small(torch), "b": {"c": small(torch, 1).half()}}, archive)
    content, random = path.read_bytes(), np.random.default_rng(0)
    for length in [*range(0, len(content), 97), len(content) - 1]:
        refusal(bare(path, content[:length]))
    for _ in range(100):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[random.integers(len(content), size=2)] = random.integers(256, size=2)
        try:
            arrays = torch_files.read_arrays(bare(path, damaged.tobytes()))
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert sum(array.nbytes for array in arrays.values()) < 2 * len(content)
