"""The attack on faces: its objective, its budgets, and what it leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from deid_jax.models.templates import ARCFACE, DLIB
from deid_jax.photos import face_attack
from deid_jax.photos.alignment import crop_matrix
from deid_jax.photos.canvases import SIZE, Canvas
from deid_jax.photos.face_attack import Canvases, FaceAttack
from deid_jax.photos.faces import Face
from deid_jax.photos.verifiers import comparable_of, crops_of
from deid_jax.recognisers.embedders import Embedder, FunctionModule
from deid_jax.transfer import Surrogates
from deid_jax.transforms.alignments import Misalignment, cut
from deid_jax.transforms.random_transforms import TRANSFORMATIONS
from tests.experiments.protect_helpers import (
    FIRST,
    may_change,
    picture,
    psnr_of,
    reach,
    verifier,
)

FACES = [Face((20.0 + 3 * n, 15.0, 60.0 - 8 * n, 60.0 - 8 * n)) for n in range(5)]
PSNR = 40.0
PIXELS = picture(0)


def canvases_of(faces, pixels=PIXELS):
    return [Canvas.around(face, pixels) for face in faces]


def found(number, *, pixels=PIXELS, grey=False, psnr=PSNR, num_steps=2, seed=0, initial=None):
    faces = FACES[:number]
    return face_attack.perturbations(
        [verifier()],
        Canvases.of([verifier()], pixels, canvases_of(faces, pixels), grey=grey),
        [[own[None]] for own in comparable_of(FIRST, crops_of(pixels, faces))],
        initial,
        psnr=psnr,
        keys=jax.random.split(jax.random.key(seed), 5)[:number],
        num_steps=num_steps,
    )


@pytest.fixture(scope="module")
def first():
    """The perturbations of three faces."""
    return found(3)


def norms(perturbations):
    return np.linalg.norm(
        perturbations.astype(np.float64).reshape(len(perturbations), -1), axis=1
    )


def budgets(psnr, number):
    """ε of each face: the norm that has this PSNR over the area of its crop."""
    areas = [112**2 / np.linalg.det(crop_matrix(face)[:, :2]) for face in FACES[:number]]
    return np.sqrt(3 * np.array(areas)) * 10 ** (-psnr / 20)


# --- The objective ---


class Linear:
    """A recogniser x ↦ M x of crops of two faces, in JAX and in float64."""

    def __init__(self, alignment, seed):
        self.alignment = alignment
        generator = np.random.default_rng(seed)
        self.matrix = generator.normal(size=(5, int(np.prod(alignment.shape))))
        known = generator.normal(size=(2, 5))
        self.known = known / np.linalg.norm(known, axis=1, keepdims=True)

    def verifier(self):
        def embed(images):
            return images.reshape(len(images), -1) @ jnp.asarray(self.matrix.T, jnp.float32)

        return verifier(Embedder("linear", FunctionModule(embed), {}, self.alignment), 0.3)

    def losses(self, canvases, images):
        """⟨M a, e⟩ / ‖M a‖ − 0.3 of bilinear crops a, black outside."""
        found = []
        for canvas, image, known in zip(canvases, images, self.known, strict=True):
            face = Face((0.0, 0.0, 1.0, 1.0), canvas.landmarks)
            linear, moved = np.split(crop_matrix(face, self.alignment), [2], axis=1)
            rows, columns = np.mgrid[: self.alignment.height, : self.alignment.width]
            x, y = np.linalg.inv(linear) @ (np.stack([columns.ravel(), rows.ravel()]) - moved)
            planes = [
                ndimage.map_coordinates(plane, [y, x], order=1, mode="grid-constant")
                for plane in np.moveaxis(image, 2, 0)
            ]
            embedding = self.matrix @ np.stack(planes, axis=1).ravel()
            found.append(embedding @ known / np.linalg.norm(embedding) - 0.3)
        return np.array(found)


def test_objective_has_the_gradient_of_a_float64_model(monkeypatch):
    """s log mean exp(l/s), s = 0.1, over two recognisers' own crops; one photo is grey."""
    monkeypatch.setitem(TRANSFORMATIONS, "none", lambda images, key: images)
    own = [Linear(ARCFACE.scaled(40), 1), Linear(DLIB.scaled(50), 2)]
    verifiers = [one.verifier() for one in own]
    places = canvases_of(FACES[:2])
    canvases = dataclasses.replace(
        Canvases.of(verifiers, PIXELS, places, grey=False), grey=np.array([True, False])
    )
    shown = np.stack([canvas.cut_from(PIXELS) for canvas in places]).astype(float)
    weights = np.stack([canvas.weights() for canvas in places]).astype(float)

    def losses(images):
        perturbation = images - shown
        luma = (perturbation @ [0.299, 0.587, 0.114])[..., None]
        perturbation = luma + np.array([0, 0.5]).reshape(2, 1, 1, 1) * (perturbation - luma)
        seen = [one.losses(places, shown + weights * perturbation) for one in own]
        return 0.1 * np.log(np.mean(np.exp(np.array(seen) / 0.1), axis=0))

    surrogates = Surrogates.of(
        [one.embedder for one in verifiers], [one.known for one in own], [0.3, 0.3]
    )
    objective = FaceAttack(Misalignment(0, 0, 0, flips=0), "none").objective(
        surrogates, canvases, [one.alignment for one in own]
    )
    generator = np.random.default_rng(0)
    images = shown + generator.normal(0, 0.02, shown.shape)
    keys = jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def pulled(images):
        losses, pull, success = jax.vjp(lambda x: objective(x, keys), images, has_aux=True)
        return losses, success, pull(jnp.ones(2))[0]

    loss, success, gradient = pulled(jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(loss, losses(images), atol=1e-5)
    np.testing.assert_array_equal(success, losses(images) < 0)
    gradient = np.asarray(gradient, np.float64)
    size = norms(gradient)
    for direction in (gradient, *generator.normal(size=(3, *gradient.shape))):
        along = direction / norms(direction).reshape(2, 1, 1, 1)
        slopes = (losses(images + 1e-4 * along) - losses(images - 1e-4 * along)) / 2e-4
        inner = np.sum(gradient * along, axis=(1, 2, 3))
        np.testing.assert_allclose(inner / size, slopes / size, atol=1e-4)


@pytest.mark.parametrize("alignment", [ARCFACE, DLIB])
@pytest.mark.parametrize("width", [60.0, 400.0])
def test_what_a_surrogate_is_taken_to_see_is_what_it_sees(width, alignment):
    """In its own crop of the photo to which the perturbation, of long waves, was added."""
    random = np.random.default_rng(3)
    points = (ARCFACE.points + random.normal(0, 1.5, (5, 2))) * width / 90 + width / 3
    face = Face((0.0, 0.0, width, width), points)
    pixels = picture(0, size=(round(2 * width),) * 2, contrast=20)
    surrogates = [verifier(FIRST._replace(alignment=alignment))]
    (canvas,) = places = [Canvas.around(face, pixels)]
    canvases = Canvases.of(surrogates, pixels, places, grey=False)
    perturbation = ndimage.gaussian_filter(random.normal(size=(SIZE, SIZE, 3)), (8, 8, 0))
    perturbation *= np.float32(0.1 / perturbation.std())
    shown = canvases.perturbed(canvases.images + perturbation[None])
    before, expected = (
        cut(images, canvases.maps[0], alignment.height, alignment.width)[0]
        for images in (canvases.images, shown)
    )
    colours = canvases.perturbed(canvases.images + perturbation[None]) - canvases.images
    inside, own = canvas.spread(np.float32(colours[0]))
    changed = pixels.astype(np.float64)
    changed[inside] += 255 * own
    photos = (pixels, np.rint(changed).clip(0, 255).astype(np.uint8))
    crops = [crops_of(photo, [face], alignment)[0] for photo in photos]
    assert np.abs(crops[0] - before).max() < 0.05
    moved, wanted = crops[1] - crops[0], expected - before
    assert np.abs(wanted).mean() > 0.03
    assert np.abs(moved - wanted).mean() < 0.05 * np.abs(wanted).mean()


# --- What is found ---


@pytest.mark.slow
def test_embeddings_turn_away_within_each_faces_own_budget():
    """Two faces of different sizes in one batch."""
    perturbations = found(2, num_steps=8)
    assert perturbations.shape == (2, SIZE, SIZE, 3)
    np.testing.assert_allclose(norms(perturbations), budgets(PSNR, 2), rtol=1e-4)
    places = canvases_of(FACES[:2])
    changed = face_attack.add(
        PIXELS, zip(places, perturbations, strict=True), [PSNR] * 2, grey=False
    )
    before, after = (
        comparable_of(FIRST, crops_of(one, FACES[:2])) for one in (PIXELS, changed)
    )
    assert np.all(np.sum(before * after, axis=1) < 0.9)


def test_given_perturbations_are_continued(first):
    """Each step is at most a third of the budget long."""
    size = budgets(PSNR, 3)
    assert np.any(first != found(3, seed=1))
    assert np.all(norms(first) < 2 * size / 3 * 1.0001) and np.all(norms(first) > 0.3 * size)
    moved = norms(found(3, num_steps=1, initial=first) - first)
    assert np.all(moved < size / 3 * 1.0001) and np.all(moved > 0.1 * size)


@pytest.mark.slow
def test_padding_and_other_faces_change_nothing(first):
    """Batches of 1, 4 and 16 are other programs, and round differently."""
    one = found(1)
    np.testing.assert_array_equal(first, found(3))
    for other in (found(5)[:1], first[:1]):
        assert np.vdot(one, other) > 0.999 * norms(one) * norms(other)


@pytest.mark.usefixtures("first")
def test_faces_sizes_and_keys_are_arguments_of_one_program():
    compiled = face_attack.find_perturbation._cache_size()
    found(4, psnr=36.0, seed=5)
    found(2, grey=True)
    assert face_attack.find_perturbation._cache_size() == compiled


# --- What becomes of the photo ---


def changed_by(pixels, face, psnr, grey=False):
    canvas = Canvas.around(face, pixels)
    noise = np.random.default_rng(3).normal(0, 0.02, (SIZE, SIZE, 3)).astype(np.float32)
    return face_attack.add(pixels, [(canvas, noise)], [psnr], grey=grey)


@pytest.mark.parametrize("psnr", [46.0, 38.0])
@pytest.mark.parametrize("width", [40.0, 90.0, 300.0])
@pytest.mark.parametrize("grey", [False, True])
def test_the_whole_budget_is_spent_within_reach(psnr, width, grey):
    pixels = picture(1, size=(160, 150), contrast=20)
    pixels = np.array(Image.fromarray(pixels).resize((480, 450))) if width == 300 else pixels
    face = Face((30.0, 25.0, width, width))
    changed = changed_by(pixels, face, psnr, grey)
    moved = changed.astype(int) - pixels
    assert not np.any(moved[~may_change(moved.shape[:2], reach(face.box))])
    canvas = Canvas.around(face, pixels)
    total = np.sum((moved / 255) ** 2) / (3 * canvas.area() * canvas.ratio**2)
    assert -10 * np.log10(total) == pytest.approx(psnr, abs=0.05)
    assert canvas.error(pixels, changed) == pytest.approx(total, rel=1e-9)
    if grey:
        np.testing.assert_array_equal(moved, np.repeat(moved[..., :1], 3, axis=2))


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_are_the_ends(value):
    """Half of the perturbation lies beyond them; the other half makes up for it."""
    pixels = np.full((100, 110, 3), value, np.uint8)
    changed = changed_by(pixels, FACES[0], 42.0)
    assert 0 < np.abs(changed.astype(int) - value).max() < 60
    assert psnr_of(pixels, changed, crop_matrix(FACES[0])) == pytest.approx(42, abs=0.05)


def test_faces_beside_the_photo_and_empty_perturbations_change_nothing():
    for left, top in ((-500.0, 10.0), (10.0, 4000.0)):
        changed = changed_by(PIXELS, Face((left, top, 30.0, 30.0)), 38.0)
        np.testing.assert_array_equal(changed, PIXELS)
    (canvas,) = canvases_of(FACES[:1])
    nothing = np.zeros((SIZE, SIZE, 3), np.float32)
    changed = face_attack.add(PIXELS, [(canvas, nothing)], [38.0], grey=False)
    np.testing.assert_array_equal(changed, PIXELS)
