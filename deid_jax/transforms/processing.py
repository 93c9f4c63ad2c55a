"""Real image processing: JPEG, resizing, filters, noise and denoising.

Used to evaluate whether protection survives. Attacks that anticipate such processing use the
differentiable `deid_jax.transforms.random_transforms`. Images are NumPy arrays
uint8[N, H, W, 3], RGB. Every function returns new images of the same shape and dtype, and each
result depends only on its image and the settings. All raise `InputError` for anything but such
a batch, and for a setting out of range.
"""

import functools
import io
import zlib
from collections.abc import Callable

import numpy as np

from deid_jax import checks
from deid_jax.errors import InputError
from deid_jax.types import NumpyArray

# uint8[N, H, W, 3] -> the processed images, uint8[N, H, W, 3].
Processing = Callable[[NumpyArray], NumpyArray]


def none(images: NumpyArray) -> NumpyArray:
    """Returns the images unchanged."""
    return _checked(images).copy()


def pillow_jpeg(images: NumpyArray, *, quality: int = 75) -> NumpyArray:
    """Compresses images as JPEG with Pillow and decodes them, with 4:2:0 chroma.

    `quality`: 1 to 100.
    """
    from PIL import Image

    checks.count("quality", quality, least=1, most=100)

    def write_and_read(image: NumpyArray) -> NumpyArray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return np.asarray(Image.open(file))

    return _each(write_and_read, images)


def half_size(images: NumpyArray) -> NumpyArray:
    """Resizes to half the height and width, rounded up, and back: Pillow's Lanczos filter."""
    from PIL import Image

    def there_and_back(pixels: NumpyArray) -> NumpyArray:
        image = Image.fromarray(pixels)
        half = (image.width + 1) // 2, (image.height + 1) // 2
        small = image.resize(half, Image.Resampling.LANCZOS)
        return np.asarray(small.resize(image.size, Image.Resampling.LANCZOS))

    return _each(there_and_back, images)


def gaussian_blur(images: NumpyArray, *, sigma: float = 1 / 112) -> NumpyArray:
    """Gaussian blur as in SciPy, truncated at 4 σ, with edges repeated.

    `sigma`: σ as a fraction of the height, at least 0; by default one pixel of 112.
    """
    from scipy.ndimage import gaussian_filter

    checks.finite_non_negative("sigma", sigma)
    # In float64: with integers SciPy would round down between the two directions.
    levels = _checked(images).astype(np.float64)
    pixels = sigma * levels.shape[1]
    return _rounded(gaussian_filter(levels, (0, pixels, pixels, 0), mode="nearest"))


def depth(images: NumpyArray, *, bits: int = 5) -> NumpyArray:
    """Reduces the bit depth of each channel: round(255 round(m x/255)/m), m = 2^bits − 1.

    Bit depth reduction of Xu, Evans, Qi: "Feature Squeezing", 2018.

    `bits`: 1 to 8; 8 leaves the images as they are.
    """
    checks.count("bits", bits, least=1, most=8)
    steps = 2**bits - 1
    table = _rounded(np.rint(np.arange(256) * steps / 255) * 255 / steps)
    return table[_checked(images)]


def seeded_noise(images: NumpyArray, *, stddev: float = 0.02, seed: int = 0) -> NumpyArray:
    """Adds n from N(0, σ²) to every pixel and channel, rounded and clipped to 8 bits.

    The noise depends only on `seed` and the image's bytes: its position in the batch does not
    matter, and the same image always gets the same noise.

    `stddev`: σ as a fraction of 255, at least 0.
    `seed`: an integer, at least 0.
    """
    checks.finite_non_negative("stddev", stddev)
    checks.count("seed", seed)

    def add(image: NumpyArray) -> NumpyArray:
        random = np.random.default_rng([seed, zlib.crc32(image.tobytes())])
        return _rounded(image + 255 * stddev * random.normal(size=image.shape))

    return _each(add, images)


def median(images: NumpyArray, *, size: int = 3) -> NumpyArray:
    """Median over size × size pixels as in SciPy, per channel, with edges repeated.

    `size`: width and height of the window in pixels, at least 1.
    """
    from scipy.ndimage import median_filter

    checks.count("size", size, least=1)
    return median_filter(_checked(images), size=(1, size, size, 1), mode="nearest")


def denoise(images: NumpyArray, *, strength: float = 0.04) -> NumpyArray:
    """Non-local means: averages pixels whose neighbourhoods look alike.

    Patches of 5×5 pixels are compared within 6 pixels in each direction, over all channels, and
    weighted by exp(−d²/h²) with d² their mean squared difference: scikit-image's fast mode.
    Buades, Coll, Morel: "A Non-Local Algorithm for Image Denoising", 2005.

    `strength`: h > 0, as a fraction of 255; the default is about ten levels.

    Raises:
      InputError: scikit-image is not installed, or see above.
    """
    try:
        from skimage.restoration import denoise_nl_means
    except ImportError as error:
        raise InputError(
            "denoise needs scikit-image: pip install 'deid_jax[photos]'"
        ) from error

    checks.fraction("strength", strength)

    def filtered(image: NumpyArray) -> NumpyArray:
        means = denoise_nl_means(
            image / 255,
            patch_size=5,
            patch_distance=6,
            h=strength,
            fast_mode=True,
            channel_axis=-1,
        )
        return _rounded(255 * means)

    return _each(filtered, images)


def _checked(images: NumpyArray) -> NumpyArray:
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not array.size:
        raise InputError(
            "images must be uint8[N, H, W, 3] with at least one pixel, "
            f"got {array.dtype}{list(array.shape)}"
        )
    return array


def _each(function: Callable[[NumpyArray], NumpyArray], images: NumpyArray) -> NumpyArray:
    return np.stack([function(image) for image in _checked(images)])


def _rounded(levels: NumpyArray) -> NumpyArray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


# Name -> processing: none first, then each kind at increasing strength.
PROCESSING: dict[str, Processing] = {
    "none": none,
    "jpeg95": functools.partial(pillow_jpeg, quality=95),
    "jpeg75": functools.partial(pillow_jpeg, quality=75),
    "jpeg50": functools.partial(pillow_jpeg, quality=50),
    "half_size": half_size,
    "blur": gaussian_blur,
    "bits5": functools.partial(depth, bits=5),
    "noise": seeded_noise,
    "median": median,
    "denoise": denoise,
}
