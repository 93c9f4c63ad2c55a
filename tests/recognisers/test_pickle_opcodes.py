"""Pickles are followed before they are loaded: what would take for ever is refused at once."""

import io
import pickle
import struct

import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.recognisers import pickle_opcodes, torch_files
from tests.recognisers.handmade_pickles import ORDERED, archive_of, legacy_of, pickled, tensor

SIZE = b"ctorch\nSize\n"
DATA = {"data/0": np.arange(4, dtype="<f4").tobytes()}
# Hashed or shown, each level is gone through twice.
DEPTH = 24


def _doubled(depth=DEPTH):
    """A tuple of a tuple twice, of a tuple twice, …"""
    levels = (b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(depth))
    return b")" + b"".join(levels)


def one_line(path):
    with pytest.raises(InputError) as refused:
        torch_files.read(path)
    message = str(refused.value)
    assert str(path) in message and "\n" not in message and len(message) < 400
    return message


def test_the_tuple_is_what_it_is_meant_to_be():
    value = pickle.loads(b"\x80\x02" + _doubled(3) + b".")
    assert value == ((((), ()), ((), ())), (((), ()), ((), ())))


@pytest.mark.parametrize(
    "value",
    [
        b"}" + _doubled() + b"Ns",
        b"}(K\x01N" + _doubled() + b"Nu",
        b"}" + _doubled() + b"q\x30h\x30Ns",
        b"}(" + _doubled() + b"q\x300K\x01Nh\x30Nu",
        b"}" + _doubled() + b"2\x86Ns",
        b"}" + _doubled() + b"2Ns",
        b"}" + _doubled() + b"\x94Ns",
        b"}(" + _doubled() + b"(1Nu",
        b"}(" + _doubled() + b"(0Nu",
        ORDERED + b")R" + _doubled() + b"Ns",
        ORDERED + b"](" + _doubled() + b"N\x86e\x85R",
        b"}" + SIZE + b"K\x01\x85\x85RNs",
    ],
)
def test_keys_that_are_hashed_without_end_are_refused(tmp_path, value):
    message = one_line(archive_of(tmp_path / "m.pt", pickled(value)))
    assert "is refused: a dict's key is neither text nor number" in message


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\x85", "takes what is not there"),
        (b"(u", "takes what is not there"),
        (b"0000", "takes what is not there"),
        (b"e", "damaged"),
        (b"h\x07", "damaged"),
        (SIZE + _doubled() + b"\x85R", "torch.Size of what is no number"),
        (SIZE + b"(" + 65 * b"K\x01" + b"t\x85R", "torch.Size of no numbers, or of too many"),
        (SIZE + b"K\x01\x85R", "torch.Size of no numbers"),
        (ORDERED + b"K\x01\x85R", "OrderedDict of what is no pairs"),
        (tensor(shape=(1,) * 65, strides=(1,) * 65), "over 64 dimensions"),
    ],
)
def test_what_no_torch_writes_is_refused(tmp_path, value, reason):
    assert reason in one_line(archive_of(tmp_path / "m.pt", pickled(value), DATA))


def test_one_list_of_entries_is_not_taken_again_and_again(tmp_path):
    entries = b"](" + 1000 * b"K\x01N\x86" + b"e\x85q\x00"
    again = ORDERED + b"q\x010" + b"]" + 101 * b"h\x01h\x00Ra"
    path = archive_of(tmp_path / "m.pt", pickled(entries + b"0" + again))
    assert "over 100000 entries" in one_line(path)


def test_entries_as_python_2_wrote_them_are_read(tmp_path):
    pair = b"X\x01\0\0\0w" + tensor() + b"\x86"
    path = archive_of(tmp_path / "m.pt", pickled(ORDERED + b"](" + pair + b"e\x85R"), DATA)
    np.testing.assert_array_equal(torch_files.read(path)["x.w"], [0, 1, 2, 3])


@pytest.mark.parametrize("number", [2**63, -(2**64) + 1, 2**64 - 1])
def test_addresses_may_be_keys(tmp_path, number):
    """As old optimisers' states have them."""
    tree = {number: 1}
    pickle_opcodes.check(io.BytesIO(pickle.dumps(tree, 2)))
    pickle_opcodes.check_key(number)


def test_numbers_that_may_share_a_hash_are_no_keys(tmp_path):
    number = 2**64
    path = archive_of(tmp_path / "m.pt", pickle.dumps({number: 1}, 2))
    assert "neither text nor number" in one_line(path)
    with pytest.raises(InputError, match="neither text nor number"):
        pickle_opcodes.check_key(number)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_pickle_writes_of_data_is_followed_to_its_end(protocol):
    shared = ("a", (1, 2))
    tree = {
        "x": [shared, shared, {2: None, None: 2.5, True: "x", 0.5: b"y", "": ()}],
        "y": {str(n): (n, [n], {n: shared}) for n in range(2000)},
        "x" * 300: list(range(300)),
        -7: [2**40, 2**400, [[]], ((),)],
    }
    file = io.BytesIO(pickle.dumps(tree, protocol) + b"rest")
    pickle_opcodes.check(file)
    assert file.read() == b"rest"


def test_versions_and_storages_that_are_shown_without_end_are_refused(tmp_path):
    path = tmp_path / "m.pt"
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    path.write_bytes(magic + b"\x80\x02" + _doubled() + b".")
    assert one_line(path).endswith("is of an unknown version")
    path.write_bytes(magic + pickle.dumps(1002, 2))
    assert one_line(path).endswith("is of an unknown version, 1002")
    legacy_of(path, pickled(tensor()))
    empty = pickle.dumps([], 2)
    content = path.read_bytes()
    assert content.endswith(empty)
    keys = b"\x80\x02]" + _doubled() + b"a."
    path.write_bytes(content[: -len(empty)] + keys + struct.pack("<q", 4) + DATA["data/0"])
    assert "list of storages is not that of its tensors" in one_line(path)
