import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.data import DataOptions, load_dataset
from deid_jax.data.splits import split_indices
from deid_jax.data.synthetic import load, photo_set, render, sample_identity, sample_variation
from tests.helpers import refused

SIZE = 64
# Of whole data sets, which take long to render.
SET_SIZE = 16


def pictures(dataset):
    return np.stack([dataset.read(i) for i in range(len(dataset))])


def example(person=0, picture=0):
    """One person in one image's circumstances."""
    who, how = jax.random.key(100 + person), jax.random.key(200 + picture)
    return jax.jit(sample_identity)(who), jax.jit(sample_variation)(how)


def parameters(seed):
    return jax.tree.map(np.asarray, photo_set._sample(seed))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.fixture(scope="module")
def whole():
    return load_dataset("synthetic", DataOptions(image_size=SET_SIZE))


@pytest.fixture(scope="module")
def held_out():
    return load_dataset("synthetic", DataOptions(image_size=SET_SIZE, split="test"))


def photograph(identity, variation, size=SIZE):
    return photo_set._shoot((identity, variation), size) / 255.0


def test_names_labels_and_pictures(whole):
    assert whole.persons == tuple(f"person_{i:02d}" for i in range(30))
    assert np.array_equal(whole.labels, np.repeat(np.arange(30), 30))
    assert whole.labels.dtype == np.int32
    assert whole.names == tuple(f"{i:03d}" for i in range(30)) * 30
    images = pictures(whole)
    assert images.shape == (900, SET_SIZE, SET_SIZE, 3)
    assert images.dtype == np.uint8
    assert images.min() < 20
    assert images.max() > 235
    assert (images.reshape(900, -1).std(1) > 12).all()
    example = whole[3]
    assert example["image"].dtype == np.float32
    assert np.array_equal(example["image"], images[3].astype(np.float32) / 255)


def test_the_same_options_give_the_same_bytes_in_any_split(whole, held_out):
    images = pictures(whole)
    again = load(DataOptions(image_size=SET_SIZE, split="test"))
    assert np.array_equal(pictures(again), pictures(held_out))
    where = {(label, name): i for i, (label, name) in enumerate(pairs(whole))}
    places = [where[pair] for pair in pairs(held_out)]
    assert np.array_equal(images[places], pictures(held_out))
    for name, values in held_out.attributes.items():
        assert np.array_equal(values, whole.attributes[name][places]), name


def pairs(dataset):
    return list(zip(dataset.labels.tolist(), dataset.names, strict=True))


def test_another_seed_gives_other_people_in_other_pictures(held_out):
    for mine, theirs in zip(parameters(0), parameters(1), strict=True):
        assert np.mean(flat(mine) != flat(theirs)) > 0.5
    other = load(DataOptions(image_size=SET_SIZE, split="test", seed=1))
    change = np.abs(pictures(other).astype(int) - pictures(held_out)).mean((1, 2, 3))
    assert change.min() > 5


@pytest.mark.slow
def test_splits_have_25_and_5_pictures_of_each_person_and_share_none(whole):
    train = load(DataOptions(image_size=11, split="train"))
    test = load(DataOptions(image_size=11, split="test"))
    assert pictures(train).shape == (750, 11, 11, 3)
    assert pictures(test).shape == (150, 11, 11, 3)
    assert (np.bincount(train.labels, minlength=30) == 25).all()
    assert (np.bincount(test.labels, minlength=30) == 5).all()
    assert not set(pairs(train)) & set(pairs(test))
    assert set(pairs(train)) | set(pairs(test)) == set(pairs(whole))


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
    description = np.asarray(photo_set._description(identities))
    gaps = np.linalg.norm(description[:, None] - description[None], axis=-1)
    assert gaps[~np.eye(30, dtype=bool)].min() > 0.3
    assert len(identities.traits.age) == 30
    assert len(variations.pose.yaw) == 900


@pytest.mark.slow
def test_who_and_how_change_a_picture_each_by_itself():
    ann, first = example(0, 0)
    bob, second = example(1, 1)
    assert np.mean(flat(ann) != flat(bob)) > 0.5
    assert np.mean(flat(first) != flat(second)) > 0.5
    same = photograph(ann, first)
    assert np.array_equal(same, photograph(ann, first))
    assert np.abs(same - photograph(ann, second)).mean() > 0.03
    other = photograph(bob, first)
    assert np.abs(same - other).mean() > 0.01
    # The background's corner is the circumstances' alone.
    assert np.array_equal(same[:3, :3], other[:3, :3])


@pytest.mark.slow
@pytest.mark.parametrize("picture", [0])
def test_a_picture_shows_the_same_at_any_size(picture):
    identity, variation = example(picture, picture)
    small = photograph(identity, variation)
    large = photograph(identity, variation, 128)
    assert small.shape == (64, 64, 3)
    assert large.shape == (128, 128, 3)
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.corrcoef(small.ravel(), halved.ravel())[0, 1] > 0.97


@pytest.mark.slow
def test_vmap_renders_what_single_calls_do():
    """Guards against stacked loop results, which XLA's CPU compiler got wrong in batches."""
    keys = jax.random.split(jax.random.key(3), 4)
    pair = jax.vmap(sample_identity)(keys), jax.vmap(sample_variation)(keys)
    batch = jax.jit(jax.vmap(lambda i, v: render(i, v, 128)))(*pair)
    assert batch.dtype == jnp.float32
    assert float(batch.min()) >= 0
    assert float(batch.max()) <= 1
    for k in range(4):
        single = photograph(*jax.tree.map(lambda leaf, k=k: leaf[k], pair), 128)
        assert np.abs(single - np.asarray(batch[k])).mean() < 3e-3  # rounding gives 1e-3


def level(variation):
    """The same circumstances, seen from the front in an unmoved head."""
    zero = jnp.zeros(())
    pose = variation.pose._replace(
        yaw=zero, pitch=zero, roll=zero, shift=jnp.zeros(2), scale=jnp.ones(())
    )
    return variation._replace(pose=pose)


def changes(identity, variation, part, **values):
    """Mean change per pixel [64, 64] between the first and second of each pair of values."""
    shown = [
        photograph(
            identity,
            variation._replace(
                **{
                    part: getattr(variation, part)._replace(
                        **{name: jnp.float32(pair[i]) for name, pair in values.items()}
                    )
                }
            ),
        )
        for i in range(2)
    ]
    return np.abs(shown[1] - shown[0]).mean(-1)


@pytest.mark.slow
def test_glasses_change_the_eyes_and_not_the_mouth():
    identity, variation = example(2, 2)
    change = changes(identity, level(variation), "wear", glasses=(0, 1))
    eyes, mouth = change[29:38, 16:48], change[46:, 16:48]
    assert eyes.mean() > 0.03
    assert (change > 0.1).sum() > 40
    assert mouth.mean() < 0.1 * eyes.mean()


@pytest.mark.slow
def test_a_smile_changes_the_mouth_and_not_the_background():
    identity, variation = example(2, 2)
    change = changes(
        identity, level(variation), "expression", smile=(-0.2, 1.0), mouth_open=(0.0, 1.0)
    )
    assert change[42:54, 20:44].mean() > 0.02
    assert change[:, :4].max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("group", ["light", "scene", "pose"])
def test_each_part_of_the_circumstances_is_seen(group):
    identity, variation = example(4, 4)
    _, other = example(4, 5)
    changed = variation._replace(**{group: getattr(other, group)})
    before, after = photograph(identity, variation), photograph(identity, changed)
    assert np.abs(before - after).mean() > 0.01


def test_pixels_alone_do_not_tell_who_it_is(whole):
    """The nearest mean of the training images is wrong about two in five, or more."""
    pixels = pictures(whole).reshape(900, -1).astype(np.float64)
    train, test = (split_indices(whole.labels, split, 0) for split in ("train", "test"))
    known = whole.labels[train]
    means = np.stack([pixels[train][known == label].mean(0) for label in range(30)])
    far = (means**2).sum(1)[None] - 2 * pixels[test] @ means.T
    accuracy = np.mean(far.argmin(1) == whole.labels[test])
    assert 2 / 30 < accuracy <= 0.6


def test_a_folder_is_refused():
    with refused("data_dir"):
        load(DataOptions(image_size=SIZE, data_dir="anywhere"))


@pytest.mark.parametrize("size", [10, 1025, 64.0])
def test_sizes_out_of_range_are_refused(size):
    with refused("image_size"):
        load(DataOptions(image_size=size))
