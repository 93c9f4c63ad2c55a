"""Attributes as classes, the classifier that reads them, and how agreement is measured."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest
from scipy import stats

from deid_jax.data import DataOptions, FaceDataset
from deid_jax.data.synthetic import photo_set
from deid_jax.errors import InputError
from deid_jax.evaluation import agreement, attributes
from deid_jax.evaluation.agreement import Agreement
from deid_jax.evaluation.attributes import BANDS, DUPLICATES
from deid_jax.recognisers import TrainConfig, storage, training

OPTIONS = DataOptions(image_size=16, split="test")
CONFIG = TrainConfig(epochs=8, learning_rate=2e-3, batch_size=16, flips=False)


def rendered(seed, persons=16, pictures=8, size=16):
    """Images of a hue and a bright column that stands left, in the middle or right.

    "nonsense" can't be told from the image.
    """
    random = np.random.default_rng(seed)
    count = persons * pictures
    hue, yaw = random.integers(0, 3, count), random.uniform(-15, 15, count)
    pixels = random.integers(0, 60, (count, size, size, 3))
    pixels[np.arange(count), :, :, hue] += 90
    columns = np.round((yaw + 15) / 30 * (size - 3)).astype(int)
    for picture, column in zip(pixels, columns, strict=True):
        picture[:, column : column + 3] += 100
    pixels = pixels.astype(np.uint8)
    return FaceDataset(
        name="synthetic",
        persons=tuple(f"person_{i:02d}" for i in range(persons)),
        labels=np.repeat(np.arange(persons, dtype=np.int32), pictures),
        names=tuple(f"{i:03d}" for i in range(pictures)) * persons,
        read=lambda index: pixels[index],
        image_size=size,
        split="test",
        attributes={
            "hue": np.array(["red", "green", "blue"])[hue],
            "red": hue == 0,
            "yaw": yaw,
            "looking_left": yaw < 0,
            "nonsense": random.random(count) < 0.5,
            "always": np.ones(count, bool),
        },
        provenance={"persons_seed": seed, "crop": "none"},
    )


def strangers(seed=1):
    """A set as `train_classifier` takes it: persons under names that no one else has."""
    faces = rendered(seed)
    return dataclasses.replace(faces, persons=attributes.names_of_persons(faces), provenance={})


@pytest.fixture(scope="module")
def evaluated():
    return rendered(0, persons=10)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """(path, classifier): kept there; not to be changed."""
    path = tmp_path_factory.mktemp("classifier") / "kept"
    return path, attributes.train_classifier(strangers(), OPTIONS, path, config=CONFIG)


def test_every_kind_of_value_becomes_classes():
    numbers = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    found = attributes.attributes_in(
        {
            "smiling": np.array([True, False] * 3),
            "hair_colour": np.array(["red", "black", "grey"] * 2),
            "age": numbers,
            "yaw": numbers,
            "never": np.zeros(6, bool),
            "one": np.array(["same"] * 6),
            "flat": np.ones(6),
        }
    )
    assert [one.name for one in found] == ["smiling", "hair_colour", "age", "yaw"]
    smiling, hair_colour, age, yaw = found
    assert smiling.classes == ("no", "yes")
    assert smiling.encode(np.array([True, False])).tolist() == [1, 0]
    assert hair_colour.classes == ("black", "grey", "red")
    assert hair_colour.encode(np.array(["red", "green", "black"])).tolist() == [2, -1, 0]
    assert age.classes == ("low", "middle", "high")
    assert age.encode(numbers).tolist() == [0, 0, 1, 1, 2, 2]
    assert (yaw.classes, yaw.bounds) == BANDS["yaw"]
    edges = np.array([-5.1, -5.0, 4.9, 5.0])
    assert yaw.encode(edges).tolist() == [0, 1, 1, 2]
    assert all(one.encode(numbers).dtype == np.int32 for one in (age, yaw))


@pytest.mark.parametrize("coarse", DUPLICATES)
def test_what_another_attribute_says_more_finely_is_left_out(coarse):
    values = {coarse: np.array([True, False]), DUPLICATES[coarse]: np.array([-30.0, 30.0])}
    assert [one.name for one in attributes.attributes_in(values)] == [DUPLICATES[coarse]]
    assert [one.name for one in attributes.attributes_in({coarse: values[coarse]})] == [coarse]


def test_tables_speak_of_attributes_that_the_synthetic_set_has():
    people, pictures = jax.tree.map(
        lambda leaf: np.zeros((3, *leaf.shape[1:])), jax.eval_shape(photo_set._sample, 0)
    )
    names = photo_set._attributes(people, pictures).keys()
    assert {*BANDS, *DUPLICATES, *DUPLICATES.values()} <= names


def test_labels_are_the_classes_in_the_attributes_order(evaluated):
    described = attributes.attributes_in(evaluated.attributes)
    assert [one.name for one in described] == ["hue", "red", "yaw", "nonsense"]
    faces = attributes.label(evaluated, described)
    example = faces[7]
    assert example["label"].dtype == np.int32
    assert example["label"].tolist() == [
        ["blue", "green", "red"].index(evaluated.attributes["hue"][7]),
        int(evaluated.attributes["red"][7]),
        int(np.sum(evaluated.attributes["yaw"][7] >= np.array([-5, 5]))),
        int(evaluated.attributes["nonsense"][7]),
    ]
    np.testing.assert_array_equal(example["image"], evaluated[7]["image"])
    assert faces.image_names == evaluated.image_names
    without = dataclasses.replace(evaluated, attributes={"hue": evaluated.attributes["hue"]})
    with pytest.raises(InputError, match="data set synthetic has no attribute red"):
        attributes.encode(described, without)


def test_mirrored_pictures_have_mirrored_labels(evaluated):
    described = attributes.attributes_in(evaluated.attributes)
    faces = attributes.label(evaluated, described)
    both = attributes.with_mirrored(faces, described)
    assert len(both) == 160
    assert len(set(both.image_names)) == 160
    for index in (0, 33, 79):
        picture, mirrored = both[index], both[80 + index]
        np.testing.assert_array_equal(picture["image"], faces[index]["image"])
        np.testing.assert_array_equal(mirrored["image"], picture["image"][:, ::-1])
        hue, red, yaw, nonsense = picture["label"]
        assert mirrored["label"].tolist() == [hue, red, 2 - yaw, nonsense]
    assert set(faces.classes[:, 2]) == {0, 1, 2}
    # Where the coarse attribute stands alone, it turns round as well.
    alone = {"looking_left": evaluated.attributes["looking_left"]}
    coarse = attributes.attributes_in(alone)
    faces = attributes.label(dataclasses.replace(evaluated, attributes=alone), coarse)
    both = attributes.with_mirrored(faces, coarse)
    np.testing.assert_array_equal(both.classes[80:], 1 - both.classes[:80])


def test_bounds_of_mirrored_numbers_are_symmetric():
    for name in set(BANDS) & set(attributes.MIRRORED):
        bounds = np.array(BANDS[name][1])
        np.testing.assert_array_equal(bounds, -bounds[::-1])


def test_rendered_persons_of_two_seeds_are_never_the_same():
    first, second = (attributes.names_of_persons(rendered(seed)) for seed in (0, 1))
    assert not set(first) & set(second)
    assert len(set(first)) == 16
    named = dataclasses.replace(rendered(0), provenance={})
    assert attributes.names_of_persons(named) == named.persons


def test_classifier_tells_what_is_to_be_seen_and_admits_what_is_not(kept, evaluated):
    _, classifier = kept
    info = classifier.info
    assert [one.name for one in info.attributes] == ["hue", "red", "yaw", "nonsense"]
    assert [skill.is_told for skill in info.skills] == [True, True, True, False]
    assert info.num_images == 14 * 8  # Two of 16 persons are held out.
    named = classifier.classify(evaluated)
    truth = attributes.encode(info.attributes, evaluated)
    assert named.shape == truth.shape == (80, 4)
    assert named.dtype == np.int32
    assert np.all(np.mean(named == truth, axis=0)[:3] > 0.8)


def test_skills_are_those_on_the_held_out_persons(kept):
    _, classifier = kept
    held_out = strangers().take(range(14 * 8, 16 * 8))
    named = classifier.classify(held_out)
    truth = attributes.encode(classifier.info.attributes, held_out)
    for place, skill in enumerate(classifier.info.skills):
        assert skill.accuracy == np.mean(named[:, place] == truth[:, place])
        assert skill.chance == np.bincount(truth[:, place]).max() / 16
        assert skill.kappa == agreement.cohen_kappa(truth[:, place], named[:, place])


def test_classifier_never_trains_on_the_held_out_persons(monkeypatch, tmp_path):
    seen = []

    def train(model, data, config, *, progress):
        seen.append((data.train, data.held_out, config))
        raise InputError("enough")

    monkeypatch.setattr(training, "train", train)
    options = dataclasses.replace(OPTIONS, seed=5)
    with pytest.raises(InputError, match="enough"):
        attributes.train_classifier(strangers(), options, tmp_path / "new")
    (dataset, held_out, config) = seen[0]
    assert set(dataset.labels) == set(range(14))
    assert set(held_out.labels) == {14, 15}
    assert (len(dataset), len(held_out)) == (2 * 112, 16)  # Every image both ways.
    assert not config.flips
    assert config.seed == 5
    assert not list(tmp_path.iterdir())


def test_answers_do_not_depend_on_the_batch_size(kept, evaluated):
    _, classifier = kept
    whole = classifier.classify(evaluated, batch_size=80)
    np.testing.assert_array_equal(classifier.classify(evaluated, batch_size=7), whole)


def test_kept_classifier_gives_the_same_answers(kept, evaluated):
    path, classifier = kept
    again = attributes.load_classifier(path, evaluated, OPTIONS)
    assert again.info == classifier.info
    assert again.model == classifier.model
    np.testing.assert_array_equal(again.classify(evaluated), classifier.classify(evaluated))


@pytest.mark.parametrize(
    ("faces", "options", "message"),
    [
        ({"name": "celeba"}, {}, "made for the data set synthetic, not celeba"),
        ({"image_size": 32}, {}, "made for images of size 16, not 32"),
        ({}, {"seed": 3}, "made for seed 0, not 3"),
        ({}, {"crop": "square"}, "made for crop auto, not square"),
        (
            {"provenance": {"persons_seed": 1}},
            {},
            "trained on 10 of the 10 persons evaluated",
        ),
    ],
)
def test_kept_classifier_of_something_else_is_refused(kept, evaluated, faces, options, message):
    other = dataclasses.replace(evaluated, **faces)
    with pytest.raises(InputError, match=f"checkpoint .*kept does not fit: it was {message}"):
        attributes.load_classifier(kept[0], other, dataclasses.replace(OPTIONS, **options))


def test_damaged_or_foreign_checkpoint_is_refused(kept, evaluated, tmp_path):
    load = functools.partial(attributes.load_classifier, evaluated=evaluated, options=OPTIONS)
    with pytest.raises(InputError, match="missing does not exist"):
        load(tmp_path / "missing")
    storage.save(tmp_path / "foreign", {"a": np.zeros(2)}, {"model": "model_a"})
    with pytest.raises(InputError, match="foreign cannot be read: its description is of anot"):
        load(tmp_path / "foreign")
    facts = storage.load_description(kept[0])
    storage.save(tmp_path / "other", {"a": np.zeros(2)}, facts)
    with pytest.raises(InputError, match="does not fit: its weights are of another network"):
        load(tmp_path / "other")
    shutil.copytree(kept[0], tmp_path / "damaged")
    for file in (tmp_path / "damaged" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged is damaged: "):
        load(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": {"always": np.ones(128, bool)}}, "no attribute of data set synthetic"),
        ({"image_size": 7}, "image_size must be at least 8 for attributes, got 7"),
    ],
)
def test_what_cannot_be_learnt_is_refused(tmp_path, change, message):
    others = dataclasses.replace(strangers(), **change)
    with pytest.raises(InputError, match=message):
        attributes.train_classifier(others, OPTIONS, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_path_says_what_it_was_made_for_and_serves_every_split():
    paths = {
        str(attributes.classifier_path("synthetic", DataOptions(image_size=64, split=split)))
        for split in ("all", "train", "test")
    }
    assert paths == {"checkpoints/attributes-synthetic-64px-seed0"}


def _pairs(table):
    """Two columns of classes with a confusion table int[K, K]."""
    cells = [(i, j) for (i, j), n in np.ndenumerate(np.array(table)) for _ in range(n)]
    first, second = np.array(cells, np.int32).T
    return first, second


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([[20, 5], [10, 15]], 0.4),  # p₀ = 0.7, pₑ = 0.5 · 0.6 + 0.5 · 0.4 = 0.5
        ([[45, 15], [25, 15]], (0.6 - 0.54) / 0.46),
        ([[7, 0, 0], [0, 2, 0], [0, 0, 1]], 1.0),
        ([[0, 5], [5, 0]], -1.0),
        ([[25, 25], [25, 25]], 0.0),
        ([[9, 1], [0, 0]], 0.0),  # One says the same always: no better than chance.
        ([[8, 0], [0, 0]], 1.0),  # Both do, and the same: the convention.
        ([[0, 8], [0, 0]], 0.0),  # Both do, but not the same.
    ],
)
def test_kappa_of_known_tables(table, expected):
    assert agreement.cohen_kappa(*_pairs(table)) == pytest.approx(expected, abs=1e-12)


def test_kappa_is_the_double_loop_over_classes():
    random = np.random.default_rng(0)
    first = random.integers(-1, 4, 200)
    second = np.where(random.random(200) < 0.6, first, random.integers(-1, 5, 200))
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / 200
    expected = 0.0
    for c in range(-1, 5):
        expected += np.float64(sum(first == c)) / 200 * np.float64(sum(second == c)) / 200
    kappa = agreement.cohen_kappa(first, second)
    assert kappa == pytest.approx((observed - expected) / (1 - expected), abs=1e-12)
    assert kappa == agreement.cohen_kappa(second, first)
    assert 0.3 < kappa < 0.8


def test_agreement_of_known_answers():
    truth, before, after = (np.array(a) for a in ([0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]))
    interval = stats.binomtest(3, 4).proportion_ci(0.9, method="wilson")
    assert agreement.agreement_on("a", truth, before, after, confidence=0.9) == Agreement(
        attribute="a",
        num_images=4,
        agreement=0.75,
        low=pytest.approx(interval.low),
        high=pytest.approx(interval.high),
        kappa=pytest.approx(0.5),
        accuracy_before=0.75,
        accuracy_after=0.5,
        chance=0.75,
    )


def test_same_images_agree_wholly_and_others_less(kept, evaluated):
    _, classifier = kept
    truth = attributes.encode(classifier.info.attributes, evaluated)
    before = classifier.classify(evaluated)

    def measure(read):
        after = classifier.classify(dataclasses.replace(evaluated, read=read))
        columns = zip(truth.T, before.T, after.T, strict=True)
        return [agreement.agreement_on("any", *column) for column in columns]

    for found in measure(evaluated.read):
        assert (found.agreement, found.kappa, found.high) == (1, 1, 1)
        assert found.accuracy_after == found.accuracy_before
    # One image becomes an image of another hue; the others stay.
    hue = evaluated.attributes["hue"]
    other = int(np.flatnonzero(before[:, 0] != before[3, 0])[0])
    assert hue[other] != hue[3]
    found = measure(lambda index: evaluated.read(other if index == 3 else index))[0]
    assert found.agreement == 79 / 80
    assert found.kappa < 1
    # All become images of other persons.
    for found in measure(lambda index: evaluated.read((index + 8) % 80))[:3]:
        assert found.agreement < 0.8
        assert abs(found.kappa) < 0.4
