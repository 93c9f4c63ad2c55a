import io
import warnings

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from deid_jax.data import images
from tests.helpers import refused


def _noise(height=12, width=20, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _encode(image, suffix="PNG", **options):
    content = io.BytesIO()
    image.save(content, suffix, **options)
    return content.getvalue()


# What a viewer must do with the stored pixels, from the EXIF standard's table.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(orientation, suffix):
    stored = np.kron(_noise(3, 5), np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == "JPEG" else {}
    content = _encode(Image.fromarray(stored), suffix, exif=exif, **options)
    pixels = images.decode_image(content, "a")
    expected = UPRIGHT[orientation](stored)
    assert pixels.shape == expected.shape
    np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=4)


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "WEBP", "PPM", "GIF"])
def test_lossless_formats_keep_the_pixels(suffix, tmp_path):
    levels = _noise() // 64 * 64
    levels[..., 1:] = 0  # few colours: a GIF holds 256
    options = {"lossless": True} if suffix == "WEBP" else {}
    path = tmp_path / "picture"
    path.write_bytes(_encode(Image.fromarray(levels), suffix, **options))
    for source in (path, str(path), path.read_bytes()):
        pixels = images.decode_image(source, "a")
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, levels)


def test_grey():
    grey = _noise(channels=0)
    for content in (_encode(Image.fromarray(grey)), _encode(Image.fromarray(grey), "PPM")):
        pixels = images.decode_image(content, "a")
        np.testing.assert_array_equal(pixels, np.stack([grey] * 3, axis=-1))


def test_one_bit():
    bits = _noise(channels=0) > 127
    pixels = images.decode_image(_encode(Image.fromarray(bits)), "a")
    np.testing.assert_array_equal(pixels[..., 1], bits * 255)


@pytest.mark.parametrize("suffix", ["PNG", "PPM", "TIFF"])
def test_sixteen_bit_grey_is_scaled(suffix):
    deep = np.random.default_rng(0).integers(0, 65536, (9, 10)).astype(np.uint16)
    deep[0, :4] = 0, 65535, 257 * 100, 128
    pixels = images.decode_image(_encode(Image.fromarray(deep), suffix), "a")
    expected = np.floor(deep / 257 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(pixels[..., 0], expected)
    assert pixels[0, :4, 2].tolist() == [0, 255, 100, 0]


def test_pgm_with_other_maximum_is_scaled():
    content = b"P5 8 8 1023 " + (np.full(64, 1023, ">u2")).tobytes()
    assert np.all(images.decode_image(content, "a") == 255)
    content = b"P5 8 8 15 " + bytes([15] * 64)
    assert np.all(images.decode_image(content, "a") == 255)


def test_palette():
    picture = Image.fromarray(_noise()).quantize(16)
    pixels = images.decode_image(_encode(picture), "a")
    np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB")))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 4


def test_cmyk():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = images.decode_image(_encode(cmyk, "JPEG", quality=100), "a").astype(int)
    assert pixels[8, 8, 0] > 220 and np.all(pixels[8, 8, 1:] < 40)


def test_transparency_shows_white():
    rgba = np.zeros((8, 9, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:4, :, 3] = 255
    rgba[4, :, 3] = 51
    pixels = images.decode_image(_encode(Image.fromarray(rgba)), "a")
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[4, 0].tolist() == [244, 204, 204]
    assert pixels[7, 8].tolist() == [255, 255, 255]


def test_grey_with_alpha_and_transparent_palette_entry():
    grey = np.zeros((8, 8, 2), np.uint8)
    grey[0, 0, 1] = 255
    pixels = images.decode_image(_encode(Image.fromarray(grey, "LA")), "a")
    assert pixels[0, 0].tolist() == [0, 0, 0] and pixels[1, 1].tolist() == [255] * 3
    indices = Image.fromarray(np.eye(8, dtype=np.uint8))
    indices = indices.convert("P")
    indices.putpalette([10, 20, 30, 40, 50, 60])
    content = _encode(indices, transparency=0)
    pixels = images.decode_image(content, "a")
    assert pixels[0, 1].tolist() == [255] * 3 and pixels[1, 1].tolist() == [40, 50, 60]


@pytest.mark.parametrize("suffix", ["WEBP", "PNG", "GIF", "TIFF", "MPO"])
def test_first_frame_of_an_animation(suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    content = _encode(frames[0], suffix, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
    pixels = images.decode_image(content, "a").astype(int)
    np.testing.assert_allclose(pixels[8, 8], [255, 0, 0], atol=4)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "BMP", "PPM"])
def test_truncated_files_are_named(suffix, tmp_path):
    content = _encode(Image.fromarray(_noise(64, 64)), suffix)
    path = tmp_path / "half"
    path.write_bytes(content[: len(content) // 2])
    with refused(r"^ada/half cannot be read: .+$"):
        images.decode_image(path, "ada/half")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.jpg is an empty file"),
        (b"not an image, but text", "x.jpg is not an image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known"),
        (b"\x89PNG\r\n\x1a\n", "x.jpg"),
        (b"\xff\xd8\xff\xe0", "x.jpg"),
        (b"Pf 8 8 -1.0\n" + bytes(256), "floating point"),
    ],
)
def test_what_is_no_picture_is_named(content, message, tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    for source in (path, content):
        with refused(message):
            images.decode_image(source, "x.jpg")


def test_missing_file_and_folder(tmp_path):
    with refused(r"^gone cannot be read: No such file or directory$"):
        images.decode_image(tmp_path / "gone.png", "gone")
    with refused(r"^here cannot be read: Is a directory$"):
        images.decode_image(tmp_path, "here")


def test_content_decides_not_the_suffix(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(_encode(Image.fromarray(_noise()), "PNG"))
    np.testing.assert_array_equal(images.decode_image(path, "a"), _noise())


def _huge(width, height):
    """A PGM that claims a size and has next to no pixels."""
    return f"P5 {width} {height} 255 ".encode() + bytes(100)


@pytest.mark.parametrize("size", [(10_000, 9_000), (20_000, 20_000)])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_bombs_are_errors(size, action):
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with refused(r"^big has more than 89478485 pixels"):
            images.decode_image(_huge(*size), "big")


def test_bomb_limit_holds_where_pillows_is_lifted(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with refused(r"^big has more than 89478485 pixels: 10000x9000$"):
        images.decode_image(_huge(10_000, 9_000), "big")


def test_smallest_picture():
    assert images.decode_image(_encode(Image.new("RGB", (8, 8))), "a").shape == (8, 8, 3)
    for size in ((7, 40), (40, 7), (1, 1)):
        with refused(f"dot is {size[0]}x{size[1]}: .* 8 pixels"):
            images.decode_image(_encode(Image.new("RGB", size)), "dot")


def test_damaged_metadata_is_no_reason_to_refuse_or_to_warn():
    text = PngImagePlugin.PngInfo()
    text.add(b"eXIf", b"II*\x00\x08\x00\x00\x00\xff\xff")
    content = _encode(Image.fromarray(_noise()), pnginfo=text)
    with images.quiet_pillow():
        np.testing.assert_array_equal(images.decode_image(content, "a"), _noise())


def test_quiet_pillow_restores_the_filters():
    before = list(warnings.filters)
    with images.quiet_pillow():
        assert warnings.filters != before
    assert warnings.filters == before


@pytest.mark.parametrize(
    ("name", "width", "height", "box"),
    [
        ("square", 178, 218, (0, 20, 178, 198)),
        ("square", 250, 250, (0, 0, 250, 250)),
        ("square", 11, 8, (1, 0, 9, 8)),
        ("celeba", 178, 218, (25, 62, 153, 190)),
        ("celeba", 356, 436, (50, 124, 306, 380)),
        ("auto", 178, 218, (25, 62, 153, 190)),
        ("auto", 218, 178, (20, 0, 198, 178)),
        ("none", 30, 20, (0, 0, 30, 20)),
    ],
)
def test_crops(name, width, height, box):
    assert images.BOXES[name](width, height) == box
    rows, columns = np.mgrid[:height, :width].astype(np.int64)
    pixels = np.stack([rows, columns], axis=-1)
    left, top, right, bottom = box
    np.testing.assert_array_equal(images.crop(pixels, name), pixels[top:bottom, left:right])


def test_celeba_crop_holds_the_landmarks_and_is_centred():
    left, top, right, bottom = images.BOXES["celeba"](178, 218)
    assert right - left == bottom - top
    assert left < 69 - 30 and right > 108 + 30 and top < 111.5 - 30 and bottom > 152.5 + 30
    assert abs((left + right) / 2 - 88.5) <= 1


@pytest.mark.parametrize("name", images.BOXES)
def test_every_crop_of_the_smallest_pictures_has_pixels(name):
    for width, height in ((8, 8), (8, 900), (900, 8)):
        assert images.crop(np.zeros((height, width, 3), np.uint8), name).size > 0


@pytest.mark.parametrize("size", [1, 8, 37, 64, 100])
@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (33, 50)])
def test_resize_to_any_size(size, shape):
    pixels = np.full((*shape, 3), (10, 100, 250), np.uint8)
    resized = images.resize(pixels, size)
    assert resized.shape == (size, size, 3) and resized.dtype == np.uint8
    assert np.all(resized == (10, 100, 250))


def test_resize_is_antialiased_and_the_identity_at_the_same_size():
    checkers = np.indices((64, 64)).sum(axis=0)[..., None] % 2 * np.full(3, 255)
    reduced = images.resize(checkers.astype(np.uint8), 16)[2:-2, 2:-2]
    assert np.all(np.abs(reduced.astype(int) - 127.5) < 3)
    pixels = _noise(32, 32)
    np.testing.assert_array_equal(images.resize(pixels, 32), pixels)


def test_thumbnail_averages_areas():
    blocks = _noise(24, 24, 0) // 2 + 60
    around = np.array([[-60, 40, 20], [60, -40, -20]])
    grey = np.kron(blocks, np.ones((2, 3))) + np.tile(around, (24, 24))
    pixels = np.stack([grey.astype(np.uint8)] * 3, axis=-1)
    np.testing.assert_array_equal(images.thumbnail(pixels), blocks)


# Eyes, nose, corners of the mouth: x, y of pixels' centres, in CelebA's aligned images and on
# the template of 112 pixels that ArcFace's authors publish.
CELEBA_POINTS = np.array([(69, 111.5), (108, 111.5), (88, 134), (72, 152.5), (105.5, 152.5)])
TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)


@pytest.fixture(scope="module")
def similarity():
    """The least-squares similarity of the points, by scikit-image."""
    transform = pytest.importorskip("skimage.transform")
    return transform.SimilarityTransform.from_estimate(CELEBA_POINTS, TEMPLATE)


def _blob(x, y, spread=3.0, height=218, width=178):
    rows, columns = np.mgrid[:height, :width]
    bump = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * spread**2))
    return np.repeat(np.round(255 * bump)[..., None], 3, axis=2).astype(np.uint8)


def _centroid(pixels):
    weight = pixels[..., 0].astype(np.float64)
    rows, columns = np.indices(weight.shape)
    return np.array([np.sum(columns * weight), np.sum(rows * weight)]) / weight.sum()


@pytest.mark.parametrize("size", [64, 112, 224])
@pytest.mark.parametrize("place", range(5), ids=["eye", "other eye", "nose", "mouth", "mouth2"])
def test_landmarks_come_to_lie_on_the_template(similarity, size, place):
    x, y = CELEBA_POINTS[place]
    aligned = images.align(_blob(x, y), size)
    assert aligned.shape == (size, size, 3) and aligned.dtype == np.uint8
    # Centres of pixels, in pixels of the template.
    found = (_centroid(aligned) + 0.5) * 112 / size - 0.5
    np.testing.assert_allclose(found, similarity(CELEBA_POINTS[place])[0], atol=0.1)
    assert np.linalg.norm(found - TEMPLATE[place]) < 2


def test_alignment_is_the_best_similarity(similarity):
    residuals = np.linalg.norm(similarity(CELEBA_POINTS) - TEMPLATE, axis=1)
    assert residuals.max() < 2
    centroids = [_centroid(images.align(_blob(x, y), 112)) for x, y in CELEBA_POINTS]
    ours = np.linalg.norm(np.array(centroids) - TEMPLATE, axis=1)
    assert np.sum(ours**2) < 1.02 * np.sum(residuals**2)


@pytest.mark.parametrize("size", [112, 150, 224])
def test_alignment_equals_scikit_images_warp(similarity, size):
    transform = pytest.importorskip("skimage.transform")
    # Waves of 18 pixels and more, which two bicubic filters see much alike.
    rows, columns = np.mgrid[:218, :178] / 4.0
    waves = np.stack([np.sin(rows), np.cos(columns), np.sin(rows + columns)], axis=-1)
    pixels = np.round(127 + 90 * waves).astype(np.uint8)
    scale = size / 112
    enlarge = transform.AffineTransform(scale=scale, translation=[scale / 2 - 0.5] * 2)
    expected = transform.warp(
        pixels / 255, (similarity + enlarge).inverse, output_shape=(size, size), order=3
    )
    away = np.abs(images.align(pixels, size) - 255 * expected)[2:-2, 2:-2]
    assert away.mean() < 1.5 and away.max() < 6


def test_what_is_on_the_template_already_stays():
    pixels = _noise(112, 112)
    np.testing.assert_array_equal(images.align(pixels, 112), pixels)
    np.testing.assert_array_equal(images.align(pixels, 64), images.resize(pixels, 64))


@pytest.mark.parametrize("width, height", [(218, 178), (178, 217), (112, 113), (250, 250)])
def test_pictures_of_unknown_geometry_are_not_aligned(width, height):
    message = f"needs images of 178x218 .* or 112x112 .*, got {width}x{height}$"
    with refused(message):
        images.align(_noise(height, width), 112)


@pytest.mark.parametrize("name", images.CROPS)
@pytest.mark.parametrize("size", [32, 112])
def test_face_is_every_crop_at_the_size_asked_for(name, size):
    pixels = _noise(218, 178)
    found = images.face_crop(pixels, name, size)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    if name == "arcface":
        expected = images.align(pixels, size)
    else:
        expected = images.resize(images.crop(pixels, name), size)
    np.testing.assert_array_equal(found, expected)


def test_face_of_an_unknown_crop():
    with refused("one of auto, celeba, none, square, arcface, got eye"):
        images.face_crop(_noise(), "eye", 64)
