import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.photos.faces import Face
from deid_jax.photos.verdicts import judge, views
from deid_jax.photos.verifiers import Verifier, comparable_of, crops_of, gallery_of
from tests.experiments import protect_helpers
from tests.experiments.protect_helpers import embedder

LEFT, RIGHT = Face((10.0, 12.0, 50.0, 50.0)), Face((90.0, 14.0, 50.0, 50.0))


def _mean_colour(images):
    """The mean colour, about grey: three numbers an image."""
    return images.mean((1, 2)) - 0.5


MEAN = embedder(_mean_colour)


def unit(vectors):
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def pixels():
    """Two flat colours side by side, a face on each."""
    found = np.empty((80, 160, 3), np.uint8)
    found[:, :80], found[:, 80:] = (200, 128, 40), (30, 220, 90)
    return found


def test_cosines_compare_unit_embeddings_of_the_crops(pixels):
    crops = crops_of(pixels, [LEFT, RIGHT])
    assert crops.shape == (2, 112, 112, 3)
    found = comparable_of(MEAN, crops)
    assert found.dtype == np.float64
    wanted = unit(crops.astype(np.float64).mean((1, 2)) - 0.5)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["zero", "broken"])
def test_judge_who_sees_nothing_is_not_fooled(name, pixels):
    blind = embedder(getattr(protect_helpers, name))
    crops = crops_of(pixels, [LEFT])
    with pytest.raises(InputError, match=f"recogniser {name}: embeddings must"):
        comparable_of(blind, crops)
    with pytest.raises(InputError, match=f"recogniser {name}: embeddings"):
        judge(pixels, [LEFT], [np.ones((1, 1, 12))], [Verifier(blind, 0.5, True)])


def test_every_recogniser_judges_every_face_in_order(pixels):
    colours = unit(np.array([[200, 128, 40], [30, 220, 90]]) / 255 - 0.5)
    known = list(zip(colours[::-1, None], colours[:, None], strict=True))
    witnesses = [Verifier(MEAN, 0.1, True), Verifier(MEAN._replace(name="other"), 0.9, False)]
    found = judge(pixels, [LEFT, RIGHT], known, witnesses)
    cosine = float(colours[0] @ colours[1])
    for own in found:
        first, second = own
        assert (first.recogniser, first.fitted, first.threshold) == ("_mean_colour", True, 0.1)
        assert (second.recogniser, second.fitted, second.threshold) == ("other", False, 0.9)
        # The worst view is after compression, which moves these colours by up to two levels.
        assert cosine - 1e-6 < first.similarity < cosine + 0.01
        assert second.similarity == pytest.approx(1, abs=1e-5)
        assert first.fooled
        assert not second.fooled


def test_boxes_found_anew_count_where_they_are_more_like(pixels):
    """A face that is hidden in its old place, and not a few pixels beside it."""
    known = [np.array([[[1.0, 0, 0]]])]
    shifted = pixels.copy()
    shifted[:, :30] = (40, 128, 128)
    beside = Face((22.0, 12.0, 50.0, 50.0))

    def verdict(*found):
        detector = None if not found else lambda pixels: list(found)
        verifier = Verifier(MEAN, 0.9, True)
        ((found,),) = judge(shifted, [LEFT], known, [verifier], detector)
        return found.similarity

    old = verdict()
    assert verdict(beside) > old + 0.01
    assert verdict(LEFT) == old
    # What is more like elsewhere is no look at this face; and what is less like is none better
    # than the crop of the original landmarks.
    assert verdict(Face((100.0, 12.0, 50.0, 50.0))) == old
    own = comparable_of(MEAN, crops_of(shifted, [LEFT])).item(0)
    assert own <= verdict(Face((2.0, 12.0, 50.0, 50.0))) < old


def test_a_box_over_part_of_a_face_is_judged_where_the_face_is_found():
    part, whole = Face((10.0, 12.0, 25.0, 25.0)), Face((10.0, 12.0, 50.0, 50.0))
    assert views([part, RIGHT], [whole, RIGHT]) == [[part, whole], [RIGHT, RIGHT]]


def test_photos_count_where_the_face_is_their_persons():
    photos = unit(np.array([[3.0, 4, 0], [4.0, 3, 0]]))
    mean = np.array([1, 1, 0]) / np.sqrt(2)
    own = np.array([1.0, 0, 0])

    def references(threshold, gallery):
        return Verifier(MEAN, threshold, True, gallery).references(own)

    np.testing.assert_allclose(references(0.7, photos), [own, mean, *photos])
    np.testing.assert_array_equal(references(0.71, photos), [own])
    np.testing.assert_array_equal(references(0.7, None), [own])


def test_attack_goes_away_from_the_face_and_its_persons_mean():
    known = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    np.testing.assert_allclose(
        Verifier(MEAN, 0.5, True).dodged(known), np.array([1, 1, 0]) / np.sqrt(2)
    )
    np.testing.assert_array_equal(Verifier(MEAN, 0.5, True).dodged(known[2:]), known[2])


def test_photos_without_common_direction_are_refused(pixels):
    def opposite(images):
        return jnp.where(images.mean((1, 2))[:, :1] > 0.5, 1.0, -1.0) * jnp.ones((1, 2))

    with pytest.raises(InputError, match="embeddings must not cancel"):
        gallery_of(Verifier(embedder(opposite), 0.5, True), [(pixels, LEFT), (pixels, RIGHT)])
