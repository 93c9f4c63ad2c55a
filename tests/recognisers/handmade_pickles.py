"""Checkpoints made by hand, as no torch.save writes them."""

import pickle
import struct
import zipfile

ORDERED = b"ccollections\nOrderedDict\n"
FLOATS = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def archive_of(path, pickled, entries=(), **options):
    """A ZIP archive as torch.save lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/byteorder", "little")
        for name, content in dict(entries).items():
            archive.writestr(f"model/{name}", content)
    return path


def legacy_of(path, pickled, keys=(), tail=b""):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    start = b"".join(pickle.dumps(part, 2) for part in parts)
    path.write_bytes(start + pickled + pickle.dumps(list(keys), 2) + tail)
    return path


def storage(numel=4, key=b"0", kind=FLOATS):
    size = b"J" + struct.pack("<i", numel)
    return (
        b"(X\x07\0\0\0storage" + kind + b"X\x01\0\0\0" + key + b"X\x03\0\0\0cpu" + size + b"tQ"
    )


def tensor(numel=4, offset=0, shape=(4,), strides=(1,), of=None):
    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    place = b"J" + struct.pack("<i", offset)
    arguments = place + numbers(shape) + numbers(strides) + b"\x89" + ORDERED + b")R"
    return REBUILD + b"(" + (of or storage(numel)) + arguments + b"tR"


def pickled(value):
    """{"x": value}"""
    return b"\x80\x02}X\x01\0\0\0x" + value + b"s."
