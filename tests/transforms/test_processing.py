"""Processing of 8-bit pictures against NumPy, JAX and closed forms."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

from deid_jax.errors import InputError
from deid_jax.pixels import LEVELS
from deid_jax.transforms import processing
from deid_jax.transforms.jpeg import jpeg
from deid_jax.transforms.processing import PROCESSING

every = pytest.mark.parametrize("name", PROCESSING)


@pytest.fixture(scope="module")
def photos():
    """uint8[3, 48, 64, 3]: a real face, its mirror image and its negative."""
    face = Image.fromarray(skimage.data.astronaut()[:210, 90:370])
    picture = np.asarray(face.resize((64, 48), Image.Resampling.LANCZOS))
    return np.stack([picture, picture[:, ::-1], 255 - picture])


def psnr(pictures, originals):
    error = np.mean((pictures.astype(np.float64) - originals) ** 2)
    return 10 * np.log10(255**2 / error)


@every
def test_gives_images_of_the_same_kind_and_leaves_the_given_alone(name, photos):
    before = photos.copy()
    changed = PROCESSING[name](photos)
    assert changed.shape == photos.shape and changed.dtype == np.uint8
    assert not np.shares_memory(changed, photos) and changed.flags.writeable
    np.testing.assert_array_equal(photos, before)
    assert (changed == photos).all() == (name == "none")


@every
def test_repeats_itself_and_a_batch_is_its_images(name, photos):
    changed = PROCESSING[name](photos)
    np.testing.assert_array_equal(changed, PROCESSING[name](photos))
    alone = np.concatenate([PROCESSING[name](photos[i : i + 1]) for i in (2, 0)])
    np.testing.assert_array_equal(changed[[2, 0]], alone)


@every
def test_leaves_black_and_white_but_for_noise(name):
    flat = np.stack([np.zeros((16, 17, 3), np.uint8), np.full((16, 17, 3), 255, np.uint8)])
    most = 30 if name == "noise" else 0
    assert np.abs(PROCESSING[name](flat).astype(int) - flat).max() <= most


@pytest.mark.parametrize("quality", [95, 75, 50])
def test_jpeg_equals_our_own(quality, photos):
    """Two writers: Pillow's and the differentiable one."""
    ours = 255 * np.asarray(jax.jit(jpeg)(LEVELS[photos], quality), np.float64)
    assert np.abs(PROCESSING[f"jpeg{quality}"](photos) - ours).mean() < 0.3


def test_lower_quality_is_farther_away(photos):
    qualities = [psnr(PROCESSING[f"jpeg{quality}"](photos), photos) for quality in (95, 75, 50)]
    assert qualities == sorted(qualities, reverse=True) and qualities[0] > 30


@pytest.mark.parametrize("height, width", [(48, 64), (47, 63)])
def test_half_size_equals_jax(height, width, photos):
    pictures = photos[:, :height, :width]

    def resized(levels, height, width):
        """Width first, and 8 bits in between: as Pillow does it."""
        for shape in ((3, levels.shape[1], width, 3), (3, height, width, 3)):
            levels = jax.image.resize(levels, shape, "lanczos3", antialias=True)
            levels = jnp.round(jnp.clip(levels, 0, 255))
        return levels

    @jax.jit
    def there_and_back(levels):
        return resized(resized(levels, 24, 32), height, width)

    expected = there_and_back(pictures.astype(np.float32))
    error = np.abs(processing.half_size(pictures) - expected)
    assert error.max() <= 1 and error.mean() < 0.01


def test_blur_equals_numpy(photos):
    sigma = 48 / 112
    places = np.arange(-8, 9)
    taps = np.exp(-0.5 * (places / sigma) ** 2) * (np.abs(places) <= round(4 * sigma))
    taps /= taps.sum()
    padded = np.pad(photos.astype(np.float64), ((0, 0), (8, 8), (8, 8), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (17, 17), axis=(1, 2))
    expected = np.einsum("bhwcij,i,j->bhwc", windows, taps, taps)
    assert np.abs(processing.gaussian_blur(photos) - expected).max() < 0.5 + 1e-9


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_depth_keeps_evenly_spaced_levels(bits):
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, None, :, None], 3, axis=3)
    changed = processing.depth(ramp, bits=bits)
    levels = np.linspace(0, 255, 2**bits)
    np.testing.assert_array_equal(np.unique(changed), np.rint(levels))
    nearest = np.abs(ramp[..., None] - levels).min(axis=-1)
    assert np.abs(np.abs(changed - ramp.astype(float)) - nearest).max() <= 0.5


def test_median_equals_numpy(photos):
    padded = np.pad(photos, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    np.testing.assert_array_equal(processing.median(photos), np.median(windows, axis=(-2, -1)))


def test_noise_has_its_deviation_and_seeds_differ():
    grey = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (127, 128)])
    draws = [processing.seeded_noise(grey, seed=seed) - grey.astype(float) for seed in (0, 1)]
    for added in itertools.chain(*draws):
        # Rounding adds a twelfth to the variance.
        assert abs(added.std() / np.hypot(0.02 * 255, 12**-0.5) - 1) < 0.03
        assert abs(added.mean()) < 0.2
    apart = np.corrcoef(np.concatenate(draws).reshape(4, -1)) - np.eye(4)
    assert np.abs(apart).max() < 0.05


def test_denoise_is_the_mean_of_what_looks_alike():
    """Against every pair of pixels in NumPy, away from the edges."""
    random = np.random.default_rng(0)
    picture = np.clip(128 + 12 * random.normal(size=(24, 24, 3)), 0, 255).astype(np.uint8)
    strength = 0.1
    x = picture / 255.0
    patches = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(0, 1))
    middle = processing.denoise(picture[None], strength=strength)[0, 8:16, 8:16]
    for i, j in itertools.product(range(8, 16, 3), repeat=2):
        total = np.zeros(3)
        weights = 0.0
        for di, dj in itertools.product(range(-6, 7), repeat=2):
            distance = np.mean((patches[i - 2, j - 2] - patches[i - 2 + di, j - 2 + dj]) ** 2)
            weight = np.exp(-distance / strength**2)
            total += weight * x[i + di, j + dj]
            weights += weight
        np.testing.assert_allclose(middle[i - 8, j - 8], 255 * total / weights, atol=1)


def test_denoise_takes_noise_and_leaves_edges():
    clean = np.full((1, 32, 32, 3), 60, np.uint8)
    clean[:, :, 16:] = 200
    noisy = processing.seeded_noise(clean)
    assert psnr(processing.denoise(noisy), clean) > psnr(noisy, clean) + 4


def test_denoise_says_what_it_needs(monkeypatch, photos):
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    with pytest.raises(InputError, match=r"denoise needs scikit-image: pip install"):
        processing.denoise(photos)


@every
@pytest.mark.parametrize(
    "pictures, said",
    [
        (np.zeros((4, 4, 3), np.uint8), r"uint8\[4, 4, 3\]"),
        (np.zeros((1, 4, 4, 3)), r"float64\[1, 4, 4, 3\]"),
        (np.zeros((1, 4, 4, 1), np.uint8), r"uint8\[1, 4, 4, 1\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"uint8\[0, 4, 4, 3\]"),
    ],
)
def test_other_arrays_are_refused(name, pictures, said):
    with pytest.raises(InputError, match=rf"images must be uint8.*got {said}"):
        PROCESSING[name](pictures)


@pytest.mark.parametrize(
    "name, setting, value",
    [
        ("pillow_jpeg", "quality", 0),
        ("pillow_jpeg", "quality", 101),
        ("gaussian_blur", "sigma", -1),
        ("depth", "bits", 0),
        ("depth", "bits", 9),
        ("seeded_noise", "stddev", float("nan")),
        ("seeded_noise", "seed", -1),
        ("median", "size", 0),
        ("denoise", "strength", 0),
    ],
)
def test_bad_settings_are_named(name, setting, value, photos):
    with pytest.raises(InputError, match=f"{setting} must be"):
        getattr(processing, name)(photos, **{setting: value})
