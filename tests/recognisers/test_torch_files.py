"""Checkpoints: what torch.save writes is read as torch reads it; what could harm is refused."""

import collections
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.recognisers import torch_files
from tests.recognisers.handmade_pickles import (
    FLOATS,
    ORDERED,
    REBUILD,
    archive_of,
    legacy_of,
    pickled,
    storage,
    tensor,
)

FORMATS = pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
DTYPES += ["uint8", "bool"]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def save(torch, tmp_path):
    def save(tree, archive=True, **options):
        path = tmp_path / "model.pt"
        torch.save(tree, path, _use_new_zipfile_serialization=archive, **options)
        return path

    return save


def small(torch, seed=0):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def one_line(path):
    """The message with which a file is refused."""
    with pytest.raises(InputError) as refused:
        torch_files.read(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert str(path) in str(refused.value)
    return str(refused.value)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dict_is_read_as_torch_reads_it(torch, save, archive, protocol):
    layers = [torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.PReLU(5)]
    state = torch.nn.Sequential(*layers).state_dict()
    arrays = torch_files.read(save(state, archive, pickle_protocol=protocol))
    assert list(arrays) == list(state)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, state[name].numpy(), strict=True)
        assert not array.flags.writeable
    assert arrays["1.num_batches_tracked"].dtype == np.int64


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(torch, save, archive, dtype):
    tensor = (small(torch) * 50).to(getattr(torch, dtype))
    array = torch_files.read(save({"x": tensor}, archive))["x"]
    expected = tensor.float() if dtype == "bfloat16" else tensor
    np.testing.assert_array_equal(array, expected.numpy(), strict=True)
    assert array.dtype.isnative


@FORMATS
def test_views_have_their_strides_and_share_memory(torch, save, archive):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = {
        "base": base,
        "permuted": base.permute(2, 0, 1),
        "row": base[1],
        "steps": base[::2, 1::2, 1:],
        "channels_last": base[None].contiguous(memory_format=torch.channels_last),
        "scalar": base[2, 3, 4],
        "empty": base[:0],
        "column": torch.arange(3.0)[:, None].expand(3, 1),
    }
    arrays = torch_files.read(save(views, archive))
    for name, view in views.items():
        np.testing.assert_array_equal(arrays[name], view.numpy(), strict=True)
    assert np.shares_memory(arrays["base"], arrays["permuted"])


@FORMATS
def test_nested_dicts_parameters_and_what_is_no_tensor(torch, save, archive):
    state = collections.OrderedDict(w=torch.nn.Parameter(small(torch)), b=small(torch, 1))
    state._metadata = {"": {"version": 2}}
    tree = {
        "epoch": 68,
        "loss": 0.5,
        "names": ["a", ("b", None, True)],
        "shape": small(torch).shape,
        "net_state_dict": state,
        "moments": {0: {"m": small(torch, 2)}},
    }
    path = save(tree, archive)
    arrays = torch_files.read(path)
    assert list(arrays) == ["net_state_dict.w", "net_state_dict.b", "moments.0.m"]
    inner = torch_files.read(path, prefix="net_state_dict.")
    assert list(inner) == ["w", "b"]
    np.testing.assert_array_equal(inner["w"], state["w"].detach().numpy())
    with pytest.raises(
        InputError, match=r"no tensors that begin with module\.; it has moments,"
    ):
        torch_files.read(path, prefix="module.")


def test_torch_is_not_imported(torch, save):
    path = save({"x": small(torch)})
    code = (
        "import sys; from pathlib import Path; from deid_jax import torch_files; "
        f"torch_files.read(Path({str(path)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# Pickles that would do something. `MARKER` is replaced by a file that must not appear.


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(path):
    return f"open({str(path)!r}, 'w').close()"


def evils(marker):
    import importlib

    return {
        "posix.system": Evil(os.system, f"touch {marker}"),
        "builtins.eval": Evil(eval, touch(marker)),
        "builtins.exec": Evil(exec, touch(marker)),
        "builtins.getattr": Evil(getattr, "", "join"),
        "importlib.import_module": Evil(importlib.import_module, "antigravity"),
        "subprocess.Popen": Evil(subprocess.Popen, ["touch", str(marker)]),
        "builtins.bytearray": Evil(bytearray, 2**40),
        "_codecs.encode": Evil(__import__("_codecs").encode, "x", "latin1"),
    }


WRAPPERS = pytest.mark.parametrize("wrap", [archive_of, legacy_of])


@WRAPPERS
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", list(evils("")))
def test_functions_are_refused_by_name_and_not_called(tmp_path, wrap, protocol, name):
    marker = tmp_path / "marker"
    tree = {"weights": [evils(marker)[name]]}
    path = wrap(tmp_path / "evil.pt", pickle.dumps(tree, protocol, fix_imports=False))
    assert f"is refused: it asks for {name}" in one_line(path)
    assert not marker.exists()


def test_a_bare_pickle_is_refused_by_name(tmp_path):
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    path.write_bytes(pickle.dumps(Evil(os.system, f"touch {marker}"), 2, fix_imports=False))
    assert "it asks for posix.system" in one_line(path)
    assert not marker.exists()


CONTENT = np.arange(4, dtype="<f4").tobytes()
DATA = {"data/0": CONTENT}


def test_hand_made_tensors_are_read(tmp_path):
    """So that the refusals below are for what they are meant for."""
    path = archive_of(tmp_path / "m.pt", pickled(tensor(shape=(2, 2), strides=(1, 2))), DATA)
    np.testing.assert_array_equal(torch_files.read(path)["x"], [[0, 2], [1, 3]])
    tail = struct.pack("<q", 4) + CONTENT
    path = legacy_of(tmp_path / "l.pt", pickled(tensor(offset=1, shape=(3,))), ["0"], tail)
    np.testing.assert_array_equal(torch_files.read(path)["x"], [1, 2, 3])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (tensor(shape=(5,)), "larger than its storage"),
        (tensor(offset=1), "larger than its storage"),
        (tensor(shape=(2, 2), strides=(1, 9)), "larger than its storage"),
        (tensor(shape=(2**30, 2**30), strides=(0, 0)), "larger than its storage"),
        (tensor(offset=-1, shape=(2,)), "impossible shape"),
        (tensor(shape=(-1,)), "impossible shape"),
        (tensor(shape=(4, 1)), "impossible shape"),
        (tensor(offset=3, strides=(-1,)), "impossible shape"),
        (tensor(numel=3, shape=(3,)), "16 bytes instead of 12"),
        (tensor(numel=2**30), "do not fit in the file"),
        (tensor(numel=-1), "do not fit in the file"),
        (tensor(of=b"N"), "without storage"),
        (tensor(of=storage(key=b"7")), "data/7 is missing"),
        (tensor(of=storage(kind=b"N")), "storage without type"),
        (
            tensor(of=storage(kind=b"ctorch\nComplexFloatStorage\n")),
            "torch.ComplexFloatStorage",
        ),
        (b"K\x07Q", "no storage"),
        # Chains through what is allowed.
        (ORDERED + b"(" + FLOATS + b"tR", "damaged"),
        (FLOATS + b")R", "damaged"),
        (FLOATS + b")\x81", "damaged"),
        (b"(" + ORDERED + b"o", "uses OBJ"),
        (b"(icollections\nOrderedDict\n", "uses INST"),
        (b"\x82\x01", "uses EXT1"),
        (tensor() + b"}X\x05\0\0\0shapeK\x01sb", "sets the state"),
        (FLOATS + b"N}X\x04\0\0\0nameX\x0d\0\0\0DoubleStorages\x86b", "sets the state"),
        (REBUILD + b"}X\x0c\0\0\0__defaults__)sb", "sets the state"),
        (ORDERED + b"}X\x05\0\0\0_callNsb", "sets the state"),
        (ORDERED + b")R)R", "damaged"),
        (b"ctorch._utils\n_rebuild_parameter\n(NNNtR", "parameter that is no tensor"),
        (b"ctorch._utils\n_rebuild_from_type_v2\n", "torch._utils._rebuild_from_type_v2"),
        (b"ctorch._utils\n__builtins__\n", "torch._utils.__builtins__"),
        (b"ctorch\nserialization.load\n", "torch.serialization.load"),
        (b"ccollections\nnamedtuple\n", "collections.namedtuple"),
        # Room for four thousand million objects, of which one is there.
        (b"Nr\xff\xff\xff\xff", "memo has gaps"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "damaged"),
        (b"X\xff\xff\xff\x7fabc", "damaged"),
    ],
)
def test_pickles_that_no_torch_writes_are_refused(tmp_path, value, reason):
    good = archive_of(tmp_path / "good.pt", pickled(tensor()), DATA)
    path = archive_of(tmp_path / "m.pt", pickled(value), DATA)
    assert re.search(reason, one_line(path))
    # Nothing of ours was changed by it.
    np.testing.assert_array_equal(torch_files.read(good)["x"], np.arange(4, dtype=np.float32))


def test_dicts_that_would_never_end_are_refused(tmp_path):
    inside_itself = b"\x80\x02}q\x00X\x01\0\0\0xh\x00s."
    path = archive_of(tmp_path / "m.pt", inside_itself)
    assert "nested over 16 deep" in one_line(path)
    # Each of 16 dicts has the next one ten times.
    tree = {"w": 0}
    for _ in range(15):
        tree = dict.fromkeys("abcdefghij", tree)
    assert "over 100000 entries" in one_line(archive_of(path, pickle.dumps(tree, 2)))


def test_names_that_clash_or_are_none_are_refused(torch, save):
    assert "neither text nor number" in one_line(save({(1, 2): small(torch)}))
    assert "named a.b" in one_line(save({"a.b": small(torch), "a": {"b": small(torch)}}))


def test_what_is_no_dict_of_tensors_is_refused(torch, save, tmp_path):
    assert "holds no dict" in one_line(save([small(torch)]))
    assert "has no tensors" in one_line(save({"epoch": 1}))
    assert "asks for torch.nn.modules.linear.Linear" in one_line(save(torch.nn.Linear(2, 2)))
    assert "cannot be read: No such file" in one_line(tmp_path / "missing.pt")
    assert "cannot be read: Is a directory" in one_line(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript is PyTorch's past.
def test_other_files_are_refused(torch, tmp_path):
    path = tmp_path / "m.pt"
    for content in (b"", b"hello", b"\x89HDF\r\n\x1a\n" * 9, b"PK\x03\x04", b"\x80\x02K\x07."):
        path.write_bytes(content)
        one_line(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"")
    assert "not of torch.save" in one_line(path)
    torch.jit.save(torch.jit.freeze(torch.jit.script(torch.nn.ReLU().eval())), path)
    assert "TorchScript" in one_line(path)


def test_big_endian_files_are_refused(torch, tmp_path):
    path = archive_of(tmp_path / "m.pt", pickled(tensor()), DATA)
    changed = path.read_bytes().replace(b"little", b"biggie")
    path.write_bytes(changed)
    assert "damaged" in one_line(path)  # its CRC
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled(tensor()))
        archive.writestr("model/byteorder", "big")
    assert "big-endian" in one_line(path)
    torch.save({"x": small(torch)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    place = content.index(b"little_endian")
    flag = content.index(b"\x88", place)
    path.write_bytes(content[:flag] + b"\x89" + content[flag + 1 :])
    assert "big-endian" in one_line(path)


def test_compressed_archives_are_refused(tmp_path):
    """So that no file grows when it is read."""
    entries = {"data/0": b"\0" * 4 * 2**20}
    made = pickled(tensor(numel=2**20, shape=(2**20,)))
    path = archive_of(tmp_path / "m.pt", made, entries, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in one_line(path)


@FORMATS
def test_truncated_files_are_refused(torch, save, archive):
    path = save({"a": small(torch), "b": small(torch, 1)}, archive)
    content = path.read_bytes()
    assert len(torch_files.read(path)) == 2
    for length in [*range(0, len(content), 7), len(content) - 1]:
        path.write_bytes(content[:length])
        one_line(path)


@FORMATS
def test_damaged_files_are_read_or_refused(torch, save, archive):
    """Whatever byte is wrong: arrays of some numbers, or one line."""
    path = save({"a": small(torch), "b": {"c": small(torch, 1).half()}}, archive)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(600):
        damaged = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(len(content), size=rng.integers(1, 4))
        damaged[places] = rng.integers(256, size=len(places))
        path.write_bytes(damaged.tobytes())
        try:
            with np.errstate(all="ignore"):
                arrays = torch_files.read(path)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert sum(array.nbytes for array in arrays.values()) < 2 * len(content)
    assert refused > 100


def test_legacy_storages_must_be_those_of_the_tensors(tmp_path):
    path, tail = tmp_path / "m.pt", struct.pack("<q", 4) + CONTENT
    assert "list of storages" in one_line(legacy_of(path, pickled(tensor()), ["1"], tail))
    assert "list of storages" in one_line(legacy_of(path, pickled(tensor()), [], tail))
    assert "list of storages" in one_line(legacy_of(path, pickled(tensor()), ["0"] * 2, tail))
    wrong = struct.pack("<q", 5) + CONTENT
    assert "another size" in one_line(legacy_of(path, pickled(tensor()), ["0"], wrong))


def test_large_checkpoint_is_read_in_memory_of_its_own_size(torch, save):
    """3 × 4 MB of numbers and no second copy of them."""
    import tracemalloc

    numbers = torch.zeros(3, 2**20)
    for archive in (True, False):
        path = save({"x": numbers}, archive)
        tracemalloc.start()
        array = torch_files.read(path)["x"]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert array.nbytes == 12 * 2**20
        assert peak < 1.3 * array.nbytes


def test_files_in_memory_are_not_taken_for_paths():
    with pytest.raises(TypeError):
        torch_files.read(io.BytesIO(b""))
