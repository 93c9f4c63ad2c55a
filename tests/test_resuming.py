import pytest

from deid_jax.resuming import Store, digest_of


def test_pieces_come_back_by_key(tmp_path):
    store = Store(tmp_path / "pieces")
    assert store.read({"at": 1}) is None
    assert len(store) == 0
    store.write({"at": 1}, [{"l2": 0.1 + 0.2, "ok": True, "name": "é"}])
    store.write({"at": 2}, None)
    assert store.read({"at": 1}) == [{"l2": 0.1 + 0.2, "ok": True, "name": "é"}]
    assert len(store) == 2
    store.write({"at": 1}, "new")
    assert store.read({"at": 1}) == "new"
    assert len(store) == 2


def test_key_is_its_values_not_its_order(tmp_path):
    store = Store(tmp_path)
    store.write({"a": 1, "b": (1, 2)}, 1)
    assert store.read({"b": [1, 2], "a": 1}) == 1


def test_other_facts_are_another_computation(tmp_path):
    first, second = (Store(tmp_path / digest_of({"seed": seed})) for seed in (0, 1))
    first.write({"at": 1}, "first")
    assert second.read({"at": 1}) is None
    second.write({"at": 1}, "second")
    assert Store(tmp_path / digest_of({"seed": 0})).read({"at": 1}) == "first"
    assert (len(first), len(second)) == (1, 1)


@pytest.mark.parametrize("content", [b"", b"[1, 2", b"\xff\xfe"])
def test_damaged_pieces_are_none(tmp_path, content):
    store = Store(tmp_path)
    store.write({"at": 1}, [1])
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content)
    assert store.read({"at": 1}) is None


def test_pieces_are_whole_or_absent(tmp_path):
    store = Store(tmp_path)
    store.write({"at": 1}, "old")
    with pytest.raises(TypeError):
        store.write({"at": 1}, {"not JSON": object()})
    assert store.read({"at": 1}) == "old"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
