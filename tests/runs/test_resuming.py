import jax
import pytest

from deid_jax.runs.resuming import Store
from deid_jax.runs.resuming import digest_of
from deid_jax.runs.resuming import shards_of


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


def test_pieces_have_numbers_too(tmp_path):
    store = Store(tmp_path)
    for number in (0, 12, 1_234_567):
        store.write(number, {"number": number})
    assert [store.read(number)["number"] for number in (0, 12, 1_234_567)] == [0, 12, 1_234_567]
    assert store.read(1) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000.json", "000012.json", "1234567.json",
    ]  # fmt: skip


def test_any_damage_to_a_byte_is_noticed(tmp_path):
    store = Store(tmp_path)
    piece = {"records": [{"l2": 1.5, "name": "é"}], "files": {"a.png": 7}}
    store.write(3, piece)
    path = tmp_path / "000003.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            assert store.read(3) is None, (place, bit)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert store.read(3) is None, length
    path.write_bytes(whole + b" ")
    assert store.read(3) is None
    path.write_bytes(whole)
    assert store.read(3) == piece


def test_all_pieces_in_order_one_at_a_time(tmp_path):
    store = Store(tmp_path)
    for number in (2, 0, 1):
        store.write(number, f"piece {number}")
    assert list(store.all_of(range(3))) == ["piece 0", "piece 1", "piece 2"]
    assert list(store.all_of([])) == []
    coming = store.all_of([0, 7, 1])
    assert next(coming) == "piece 0"
    with pytest.raises(OSError, match=r"000007\.json is missing or damaged: run the command"):
        next(coming)
    (tmp_path / "000001.json").write_text("{}")
    with pytest.raises(OSError, match=r"000001\.json is missing or damaged"):
        list(store.all_of(range(3)))


@pytest.mark.parametrize("shard_size", [None, 1, 7, 256, 10_000])
@pytest.mark.parametrize("num_images", [1, 2, 31, 32, 33, 511, 512, 513, 4096, 4097, 20_000])
def test_shards_hold_every_position_once_in_order(num_images, shard_size):
    shards = shards_of(num_images, shard_size)
    assert [position for shard in shards for position in shard] == list(range(num_images))
    sizes = [len(shard) for shard in shards]
    if shard_size is not None:
        assert set(sizes[:-1]) <= {shard_size}
    # Of one size but for the last.
    assert len(set(sizes[:-1])) <= 1
    assert 0 < sizes[-1] <= sizes[0]


@pytest.mark.parametrize(
    ("num_images", "on_cpu", "elsewhere"),
    [
        # (number of shards, pictures in the first).
        (0, (0, None), (0, None)),
        (1, (1, 1), (1, 1)),
        (100, (4, 32), (1, 100)),
        (512, (16, 32), (1, 512)),
        (1_000, (16, 63), (2, 512)),
        (4_096, (16, 256), (8, 512)),
        (4_097, (32, 129), (9, 512)),
        (20_480, (80, 256), (16, 1_280)),
        # 800 shards of 253.2: of 254 each, 798 hold all.
        (202_599, (798, 254), (64, 3_166)),
    ],
)
def test_shards_suit_the_device_and_few_processes(monkeypatch, num_images, on_cpu, elsewhere):
    for backend, (count, size) in {"cpu": on_cpu, "gpu": elsewhere, "tpu": elsewhere}.items():
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        shards = shards_of(num_images)
        assert (len(shards), len(shards[0]) if shards else None) == (count, size)


def test_shards_are_multiples_of_sixteen_unless_rounding_saves_some():
    for num_images in range(512, 30_000, 37):
        assert len(shards_of(num_images)) % 16 == 0, num_images
    for num_images in range(30_000, 500_000, 9_973):
        shards = shards_of(num_images)
        assert -len(shards) % 16 < len(shards) / 50, num_images
        assert 128 <= len(shards[0]) <= 256
