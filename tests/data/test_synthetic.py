import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax._validate import InputError
from deid_jax.data import DataOptions, load_dataset
from deid_jax.data.synthetic import load, loader, render, sample_identity, sample_variation

SIZE = 64


def pictures(dataset):
    return np.stack([dataset.read(i) for i in range(len(dataset))])


def example(person=0, picture=0):
    """One person in one picture's circumstances."""
    who, how = jax.random.key(100 + person), jax.random.key(200 + picture)
    return jax.jit(sample_identity)(who), jax.jit(sample_variation)(how)


def parameters(seed):
    return jax.tree.map(np.asarray, loader._sample(seed))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.fixture(scope="module")
def whole():
    return load_dataset("synthetic", DataOptions(image_size=SIZE))


@pytest.fixture(scope="module")
def held_out():
    return load_dataset("synthetic", DataOptions(image_size=SIZE, split="test"))


@pytest.fixture(scope="module")
def photograph():
    return jax.jit(render, static_argnames="image_size")


def test_names_labels_and_pictures(whole):
    assert whole.persons == tuple(f"person_{i:02d}" for i in range(30))
    assert np.array_equal(whole.labels, np.repeat(np.arange(30), 30))
    assert whole.labels.dtype == np.int32
    assert whole.names == tuple(f"{i:03d}" for i in range(30)) * 30
    images = pictures(whole)
    assert images.shape == (900, SIZE, SIZE, 3)
    assert images.dtype == np.uint8
    assert images.min() < 20
    assert images.max() > 235
    assert (images.reshape(900, -1).std(1) > 12).all()
    example = whole[3]
    assert example["image"].dtype == np.float32
    assert np.array_equal(example["image"], images[3].astype(np.float32) / 255)


def test_the_same_options_give_the_same_bytes_in_any_split(whole, held_out):
    images = pictures(whole)
    again = load(DataOptions(image_size=SIZE, split="test"))
    assert np.array_equal(pictures(again), pictures(held_out))
    where = {(label, name): i for i, (label, name) in enumerate(pairs(whole))}
    places = [where[pair] for pair in pairs(held_out)]
    assert np.array_equal(images[places], pictures(held_out))
    for name, values in held_out.attributes.items():
        assert np.array_equal(values, whole.attributes[name][places]), name


def pairs(dataset):
    return list(zip(dataset.labels.tolist(), dataset.names, strict=True))


def test_another_seed_gives_other_people_in_other_pictures():
    one, other = parameters(0), parameters(1)
    for mine, theirs in zip(one, other, strict=True):
        assert np.mean(flat(mine) != flat(theirs)) > 0.5
    small = DataOptions(image_size=16, split="test", seed=1)
    assert not np.array_equal(
        pictures(load(small)), pictures(load(DataOptions(image_size=16, split="test")))
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_have_25_and_5_pictures_of_each_person_and_share_none(seed):
    sets = {
        split: load(DataOptions(image_size=16, split=split, seed=seed))
        for split in ("train", "test", "all")
    }
    assert [len(sets[split]) for split in ("train", "test", "all")] == [750, 150, 900]
    assert (np.bincount(sets["train"].labels, minlength=30) == 25).all()
    assert (np.bincount(sets["test"].labels, minlength=30) == 5).all()
    train, test = set(pairs(sets["train"])), set(pairs(sets["test"]))
    assert not train & test
    assert train | test == set(pairs(sets["all"]))


def test_attributes_are_known_for_all_pictures_and_vary(whole):
    for name, values in whole.attributes.items():
        assert len(values) == 900, name
        assert len(np.unique(values)) > 1, name
    for name in ("smiling", "mouth_open", "glasses", "looking_left", "light_from_left", "male"):
        assert whole.attributes[name].dtype == bool
        assert 0.25 < whole.attributes[name].mean() < 0.75, name
    assert 0.05 < 1 - whole.attributes["eyes_open"].mean() < 0.3
    assert np.array_equal(whole.attributes["looking_left"], whole.attributes["yaw"] < 0)


@pytest.mark.parametrize(
    "name", ["male", "young", "skin_tone", "hair_colour", "long_hair", "bald", "facial_hair"]
)
def test_attributes_of_the_person_are_the_same_in_all_pictures(whole, name):
    values = whole.attributes[name].reshape(30, 30)
    assert (values == values[:, :1]).all()
    assert len(np.unique(values[:, 0])) > 1


def test_attributes_of_the_picture_vary_within_every_person(whole):
    for name in ("smiling", "glasses", "looking_left", "mouth_open"):
        share = whole.attributes[name].reshape(30, 30).mean(1)
        assert (share > 0).all(), name
        assert (share < 1).all(), name


def test_people_are_unlike_each_other():
    identities, variations = parameters(0)
    description = np.asarray(loader._description(identities))
    gaps = np.linalg.norm(description[:, None] - description[None], axis=-1)
    assert gaps[~np.eye(30, dtype=bool)].min() > 0.3
    assert len(identities.traits.age) == 30
    assert len(variations.pose.yaw) == 900


def test_a_person_is_recognised_in_two_circumstances_and_circumstances_in_two_persons(
    photograph,
):
    """Who is drawn from one key and how from another: each changes the picture by itself."""
    ann, first = example(0, 0)
    bob, second = example(1, 1)
    assert not np.allclose(flat(ann), flat(bob))
    assert not np.allclose(flat(first), flat(second))
    same = photograph(ann, first, image_size=SIZE)
    assert np.array_equal(same, photograph(ann, first, image_size=SIZE))
    assert float(jnp.abs(same - photograph(ann, second, image_size=SIZE)).mean()) > 0.03
    other = photograph(bob, first, image_size=SIZE)
    assert float(jnp.abs(same - other).mean()) > 0.01
    # The background's corners are the circumstances' alone, but for the grain.
    assert np.allclose(same[:4, :4], other[:4, :4], atol=2e-3)


@pytest.mark.parametrize("picture", range(3))
def test_a_picture_shows_the_same_at_any_size(photograph, picture):
    identity, variation = example(picture, picture)
    small = np.asarray(photograph(identity, variation, image_size=64))
    large = np.asarray(photograph(identity, variation, image_size=128))
    assert small.shape == (64, 64, 3)
    assert large.shape == (128, 128, 3)
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.corrcoef(small.ravel(), halved.ravel())[0, 1] > 0.97
    for image in (small, large):
        assert image.min() >= 0
        assert image.max() <= 1
        assert image.dtype == np.float32


def test_vmap_renders_what_single_calls_do(photograph):
    """Also guards a stack of loop results, which XLA's CPU compiler got wrong in batches."""
    keys = jax.random.split(jax.random.key(3), 5)
    people, ways = jax.vmap(sample_identity)(keys), jax.vmap(sample_variation)(keys)
    batch = jax.jit(jax.vmap(lambda i, v: render(i, v, SIZE)))(people, ways)
    for k in range(5):
        single = photograph(
            *jax.tree.map(lambda leaf, k=k: leaf[k], (people, ways)), image_size=SIZE
        )
        assert float(jnp.mean(jnp.abs(single - batch[k]))) < 1e-3


def test_glasses_change_the_eyes_and_not_the_mouth(photograph):
    identity, variation = example(2, 2)
    level = variation.pose._replace(
        yaw=jnp.zeros(()), pitch=jnp.zeros(()), roll=jnp.zeros(()), shift=jnp.zeros(2)
    )
    bare, worn = (
        photograph(
            identity,
            variation._replace(pose=level, wear=variation.wear._replace(glasses=glasses)),
            image_size=SIZE,
        )
        for glasses in (jnp.float32(0), jnp.float32(1))
    )
    change = np.abs(np.asarray(worn - bare)).mean(-1)
    eyes, mouth = change[29:38, 16:48], change[46:, 16:48]
    assert eyes.mean() > 0.03
    assert (change > 0.1).sum() > 40
    assert mouth.mean() < 0.1 * eyes.mean()


@pytest.mark.parametrize("group", ["expression", "light", "scene", "pose"])
def test_each_part_of_the_circumstances_is_seen(photograph, group):
    identity, variation = example(4, 4)
    _, other = example(4, 5)
    changed = variation._replace(**{group: getattr(other, group)})
    before = photograph(identity, variation, image_size=SIZE)
    after = photograph(identity, changed, image_size=SIZE)
    assert float(jnp.abs(before - after).mean()) > 0.003


@pytest.mark.parametrize("seed", [0, 1])
def test_pixels_alone_do_not_tell_who_it_is(seed):
    """The nearest mean of the training pictures is wrong about two in five, or more."""
    train = load(DataOptions(image_size=32, split="train", seed=seed))
    test = load(DataOptions(image_size=32, split="test", seed=seed))
    known = pictures(train).reshape(750, -1).astype(np.float64)
    means = np.stack([known[train.labels == label].mean(0) for label in range(30)])
    unknown = pictures(test).reshape(150, -1).astype(np.float64)
    far = (unknown**2).sum(1)[:, None] - 2 * unknown @ means.T + (means**2).sum(1)[None]
    accuracy = np.mean(far.argmin(1) == test.labels)
    assert 1 / 30 < accuracy <= 0.6


def test_a_folder_is_refused():
    with pytest.raises(InputError, match="data_dir"):
        load(DataOptions(image_size=SIZE, data_dir="anywhere"))


@pytest.mark.parametrize("size", [15, 513, 64.0])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(InputError, match="image_size"):
        load(DataOptions(image_size=size))
