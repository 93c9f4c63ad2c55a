"""What the command does to a file: pixels, colours, metadata, figures."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin

from deid_jax.photos import STRENGTHS, Face
from deid_jax.photos.alignment import crop_matrix
from tests.experiments.protect_helpers import (
    BOX,
    FACES,
    arguments,
    embedding,
    may_change,
    picture,
    psnr_of,
    reach,
    records_of,
    run,
    seen,
    shown,
    ssim_of,
)
from tests.photos.photo_bytes import (
    PROFILE,
    SECRETS,
    SMALL,
    talkative_jpeg,
    talkative_png,
)

SIZE = (110, 100)


def _alpha(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, SIZE[::-1], np.uint8))


def _pictures():
    """{mode: Pillow's image}."""
    colours = Image.fromarray(picture(0))
    grey = colours.convert("L")
    transparent, grey_transparent = colours.copy(), grey.copy()
    transparent.putalpha(_alpha(1))
    grey_transparent.putalpha(_alpha(2))
    palette = colours.quantize(64)
    found = {"RGB": colours, "L": grey, "RGBA": transparent, "LA": grey_transparent}
    return found | {"grey_RGB": grey.convert("RGB"), "P": palette, "1": grey.convert("1")}


# What each lossless file is saved with.
LOSSLESS = {
    "RGB.png": {},
    "RGBA.png": {},
    "grey_RGB.png": {},
    "P.png": {},
    "1.png": {},
    "RGB.webp": {"lossless": True},
    "RGB.tif": {},
    "grey_RGB.tif": {"compression": "tiff_lzw"},
    "RGB.bmp": {},
}
JPEGS = {
    "fine.jpg": ("RGB", {"quality": 97, "subsampling": 0}),
    "quarter.jpg": ("RGB", {"quality": 92, "subsampling": 2}),
    "coarse.jpg": ("RGB", {"quality": 60, "subsampling": 2}),
    "progressive.jpg": ("RGB", {"quality": 93, "progressive": True, "subsampling": 0}),
    "grey_in_three.jpg": ("grey_RGB", {"quality": 95, "subsampling": 2}),
    "turned.jpg": ("RGB", {"quality": 96, "subsampling": 0, "orientation": 6}),
}


def _saved(path, image, options):
    options = dict(options)
    exif = Image.Exif()
    if "orientation" in options:
        exif[0x0112] = options.pop("orientation")
        options["exif"] = exif
    if path.suffix != ".bmp":
        options["icc_profile"] = PROFILE
    image.save(path, **options)


@pytest.fixture(scope="module")
def formats(tmp_path_factory, light_attack):
    """(input, output) of one run on every kind of file."""
    source, output = (tmp_path_factory.mktemp("formats") / name for name in ("in", "out"))
    source.mkdir()
    images = _pictures()
    for name, options in LOSSLESS.items():
        _saved(source / name, images[name.partition(".")[0]], options)
    for name, (mode, options) in JPEGS.items():
        _saved(source / name, images[mode], options)
    assert run(arguments(source, output)) == 0
    return source, output


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_change_in_the_face_alone(formats, name):
    before, after = (shown(folder / name) for folder in formats)
    if name == "1.png":
        before = before * 255
    assert before.shape == after.shape
    colours = slice(0, before.shape[2] - (before.shape[2] in (2, 4)))
    changed = np.any(before != after, axis=2)
    assert changed.any()
    assert not np.any(changed & ~may_change(changed.shape, reach()))
    # Transparency is none of what a face shows.
    alphas = slice(colours.stop, None)
    np.testing.assert_array_equal(before[..., alphas], after[..., alphas])


@pytest.mark.parametrize("name", JPEGS)
def test_jpegs_change_elsewhere_as_encoding_them_again_does(formats, name):
    source, output = formats
    mode, options = JPEGS[name]
    after = shown(output / name)
    quality = records_of(output)[name]["quality"]
    assert quality >= max(options["quality"], 90)
    content = io.BytesIO()
    upright = shown(source / name)
    again = Image.fromarray(upright[..., 0] if mode == "L" else upright)
    with Image.open(output / name) as image:
        tables = list(image.quantization.values())
        sampling = max(JpegImagePlugin.get_sampling(image), 0)
    assert sampling in (0, options.get("subsampling", 0))
    coding = {"qtables": tables, "subsampling": sampling}
    again.save(content, "JPEG", **coding)
    wanted = shown(content)
    changed = np.any(wanted != after, axis=2)
    # A decoder draws coarse colours smoothly, a colour's pixel across the blocks' border.
    allowed = may_change(changed.shape, reach(), block=16, margin=2 if sampling else 0)
    assert np.any(changed & allowed)
    assert not allowed.all()
    assert not np.any(changed & ~allowed)


@pytest.mark.parametrize("name", [*LOSSLESS, *JPEGS])
def test_format_mode_size_and_profile_stay(formats, name):
    source, output = formats
    with Image.open(source / name) as before, Image.open(output / name) as after:
        upright = ImageOps.exif_transpose(before)
        assert after.format == before.format
        assert after.size == upright.size
        assert after.mode == {"P": "RGB", "1": "L"}.get(before.mode, before.mode)
        assert after.info.get("icc_profile") == before.info.get("icc_profile")
        assert (before.info.get("icc_profile") == PROFILE) is (before.format != "BMP")
        assert after.getexif().get(0x0112, 1) == 1
        assert after.info.get("progressive") == before.info.get("progressive")
    record = records_of(output)[name]
    assert (record["width"], record["height"]) == upright.size
    assert (record["quality"] is None) is (name in LOSSLESS)


@pytest.mark.parametrize("name", [*LOSSLESS, *JPEGS])
def test_figures_are_those_of_the_two_files(formats, name):
    source, output = formats
    record = records_of(output)[name]
    before, after = (
        np.asarray(Image.fromarray(np.squeeze(pixels)).convert("RGB"))
        for pixels in (
            shown(source / name) * (255 if name == "1.png" else 1),
            shown(output / name),
        )
    )
    (face,) = record["faces"]
    assert face["box"] == list(BOX)
    matrix = crop_matrix(Face(BOX))
    psnr = psnr_of(before, after, matrix)
    assert face["psnr"] == pytest.approx(psnr, abs=6e-4)
    assert face["strength_db"] == STRENGTHS["medium"] <= psnr
    assert face["ssim"] == pytest.approx(ssim_of(before, after, matrix), abs=1e-4)
    cosine = max(seen(after, Face(BOX)) @ embedding(before, matrix))
    (verdict,) = face["verdicts"]
    assert verdict["similarity"] == pytest.approx(cosine, abs=2e-3)
    assert verdict["margin"] == pytest.approx(0.9 - verdict["similarity"], abs=2e-5)
    assert verdict["fooled"] is (verdict["similarity"] < 0.9)
    status = "unjudged" if verdict["fooled"] else "not protected"
    assert record["status"] == face["status"] == status


# --- Metadata ---


@pytest.fixture(scope="module")
def talkative(tmp_path_factory, light_attack):
    """(input, output, output that keeps metadata) of files that tell everything."""
    folder = tmp_path_factory.mktemp("talkative")
    source = folder / "in"
    source.mkdir()
    (source / "a.jpg").write_bytes(talkative_jpeg(picture(0), quality=95))
    (source / "b.png").write_bytes(talkative_png())
    with Image.open(source / "b.png") as image:
        small = f"--faces=4:4:{image.width - 8}:{image.height - 8}"
    given = arguments(source, folder / "out")
    assert FACES in given
    assert run([*given[:-1], small]) in (0, 1)
    assert run([*arguments(source, folder / "kept")[:-1], small, "--keep_metadata"]) in (0, 1)
    return source, folder / "out", folder / "kept"


@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
def test_secrets_are_gone_by_default_and_small_copies_always(talkative, name):
    source, output, kept = (folder / name for folder in talkative)
    inside = [secret for secret in SECRETS if secret in source.read_bytes()]
    assert b"ACME" in inside and len(inside) > 2
    assert SMALL in source.read_bytes()
    silent, telling = output.read_bytes(), kept.read_bytes()
    for secret in inside:
        assert secret not in silent, secret
    # The maker's notes hold a small copy.
    for secret in set(inside) - {b"notes-of-maker"}:
        assert secret in telling, secret
    for content in (silent, telling):
        assert SMALL not in content
        assert SMALL.hex().encode() not in content
        assert b"QUJDQUJD" not in content
    with Image.open(output) as one, Image.open(kept) as other, Image.open(source) as before:
        upright = ImageOps.exif_transpose(before)
        assert one.size == other.size == upright.size
        assert one.getexif().get(0x0112, 1) == other.getexif().get(0x0112, 1) == 1
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        assert len(one.getexif()) == 0
        assert other.getexif()[0x010F].rstrip("\0") == "ACME"
