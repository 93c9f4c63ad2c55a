"""What a copy cannot be made of, or written to: one line says why."""

import pytest

from deid_jax.data.prepared_copy import PreparedCopy
from deid_jax.errors import TransientError
from tests.data import copying
from tests.data.tfds_sets import png
from tests.helpers import refused


@pytest.mark.parametrize(
    ("persons", "message"),
    [
        (("ada", " bob", "eve"), "person ' bob' cannot be a class of TFDS"),
        (("ada", "b\nob", "eve"), "cannot be a class of TFDS, whose names are stripped lines"),
        (("ada", "b\rob", "eve"), "cannot be a class of TFDS"),
        (("ada", "bob", ""), "cannot be a class of TFDS"),
        (("ada", "bob", "\udcff"), r"name '\\udcff' cannot be written as text"),
    ],
)
def test_names_that_tfds_cannot_hold(tmp_path, persons, message):
    with refused(message):
        PreparedCopy(tmp_path / "copy", copying.other_set(persons=persons), [range(10)])
    assert not (tmp_path / "copy").exists()


def test_a_shard_that_was_not_written(tmp_path):
    copy = PreparedCopy(tmp_path, copying.other_set(), [range(0, 5), range(5, 10)])
    copy.write(0, {0: png(copying.new_picture(0))})
    with refused(r"folder-whole.*-00001-of-00002 has not been written"):
        copy.finish()
    assert not (tmp_path / "dataset_info.json").exists()


def test_what_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    copy = PreparedCopy(tmp_path / "file", copying.other_set(), [range(10)])
    with pytest.raises(TransientError, match="array_record-00000-of-00001 cannot be written: "):
        copy.write(0, {0: png(copying.new_picture(0))})

    class FullDisk:
        def __init__(self, path, options):
            self.path = path

        def write(self, record):
            with open(self.path, "wb"):  # noqa: PTH123
                pass
            raise RuntimeError("write() failed: No space left on device; writing\nmore")

    from array_record.python import array_record_module

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", FullDisk)
    copy = PreparedCopy(tmp_path / "full", copying.other_set(), [range(10)])
    with pytest.raises(
        TransientError, match=r"cannot be written: write\(\) failed: No spa"
    ) as e:
        copy.write(0, {0: png(copying.new_picture(0))})
    assert "\n" not in str(e.value)
    assert list((tmp_path / "full").iterdir()) == []


def test_a_description_that_cannot_be_written(tmp_path, monkeypatch):
    from tensorflow_datasets.core import dataset_info

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset_info, "write_dataset_info_proto", fail)
    with pytest.raises(
        TransientError, match=r"copy cannot be written: No space left on device$"
    ):
        copying.write_copy(tmp_path / "copy", copying.other_set())
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert "dataset_info.json" not in names
    assert not any("unfinished" in name for name in names)
