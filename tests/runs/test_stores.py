import jax
import pytest

from deid_jax.runs import FolderStore, Store, digest_of, shards_of


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    return Store() if request.param == "memory" else FolderStore(tmp_path)


def read(store, key):
    (piece,) = store.all_of([key])
    return piece


def test_pieces_come_back_by_key(store):
    assert not store.done({"at": 1})
    store.write({"at": 1}, [{"l2": 0.1 + 0.2, "ok": True, "name": "é"}])
    store.write({"b": [1, 2], "a": 1}, None)
    assert read(store, {"at": 1}) == [{"l2": 0.1 + 0.2, "ok": True, "name": "é"}]
    # A key is its values, not their order.
    assert store.done({"a": 1, "b": (1, 2)})
    store.write({"at": 1}, "new")
    assert read(store, {"at": 1}) == "new"


def test_pieces_may_have_numbers(store):
    for number in (0, 12, 1_234_567):
        store.write(number, {"number": number})
    numbers = [piece["number"] for piece in store.all_of([1_234_567, 0, 12])]
    assert numbers == [1_234_567, 0, 12]
    assert not store.done(1)


def test_other_facts_are_another_computation(tmp_path):
    first, second = (FolderStore(tmp_path / digest_of({"seed": seed})) for seed in (0, 1))
    first.write({"at": 1}, "first")
    assert not second.done({"at": 1})
    assert (len(first), len(second)) == (1, 0)


def test_pieces_are_whole_or_absent(tmp_path):
    store = FolderStore(tmp_path)
    store.write(1, "old")
    with pytest.raises(TypeError):
        store.write(1, {"not JSON": object()})
    assert read(store, 1) == "old"
    assert [path.name for path in tmp_path.rglob("*")] == ["pieces", "000001.json"]


def test_any_damage_to_a_byte_is_noticed(tmp_path):
    store = FolderStore(tmp_path)
    piece = [{"l2": 1.5, "name": "é"}]
    store.write(3, piece)
    path = tmp_path / "pieces/000003.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert not store.done(3), place
        path.write_bytes(whole[:place])
        assert not store.done(3), place
    with pytest.raises(OSError, match=r"000003\.json is missing or damaged: run the command"):
        read(store, 3)
    path.write_bytes(whole)
    assert read(store, 3) == piece


def test_a_piece_that_lost_a_file_is_not_done(tmp_path):
    store = FolderStore(tmp_path)
    (tmp_path / "a.png").write_bytes(b"four")
    store.write(0, "piece", ["a.png", "left_out.png"])
    assert store.done(0)
    (tmp_path / "a.png").write_bytes(b"cut")
    assert not store.done(0)
    (tmp_path / "a.png").unlink()
    assert not store.done(0)


def test_pieces_are_read_one_at_a_time(tmp_path):
    store = FolderStore(tmp_path)
    store.write(0, "piece 0")
    coming = store.all_of([0, 7])
    assert next(coming) == "piece 0"
    with pytest.raises(OSError, match=r"000007\.json is missing or damaged"):
        next(coming)


@pytest.mark.parametrize("shard_size", [None, 7, 10_000])
@pytest.mark.parametrize("num_images", [1, 31, 33, 512, 4097])
def test_shards_hold_every_position_once_in_order(num_images, shard_size):
    shards = shards_of(num_images, shard_size)
    assert [position for shard in shards for position in shard] == list(range(num_images))
    sizes = [len(shard) for shard in shards]
    # Of one size but for the last.
    assert set(sizes[:-1]) <= {shard_size or sizes[0]}
    assert 0 < sizes[-1] <= sizes[0]


@pytest.mark.parametrize(
    ("num_images", "on_cpu", "elsewhere"),
    [
        # (number of shards, images in the first).
        (0, (0, None), (0, None)),
        (100, (4, 32), (1, 100)),
        (1_000, (16, 63), (2, 512)),
        (4_097, (32, 129), (9, 512)),
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
    for num_images in range(512, 30_000, 371):
        assert len(shards_of(num_images)) % 16 == 0, num_images
    for num_images in range(30_000, 500_000, 9_973):
        shards = shards_of(num_images)
        assert -len(shards) % 16 < len(shards) / 50, num_images
        assert 128 <= len(shards[0]) <= 256
