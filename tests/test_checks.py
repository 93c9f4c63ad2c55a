import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax import checks
from deid_jax.errors import InputError


@pytest.mark.parametrize(
    "value", [0, 1, 0.5, np.float32(2), np.array([0.0, 3.0]), float("inf")]
)
def test_non_negative_takes(value):
    checks.non_negative("alpha", value)


@pytest.mark.parametrize("value", [-1, -1e-9, float("nan"), np.array([1.0, np.nan]), -np.inf])
def test_non_negative_refuses(value):
    with pytest.raises(InputError, match="alpha must be a number >= 0, got"):
        checks.non_negative("alpha", value)


def test_finite_non_negative_refuses_infinity_too():
    checks.finite_non_negative("alpha", 1e30)
    with pytest.raises(InputError, match="alpha must be finite, got inf"):
        checks.finite_non_negative("alpha", float("inf"))
    with pytest.raises(InputError, match="alpha must be a number >= 0, got nan"):
        checks.finite_non_negative("alpha", float("nan"))


def test_tracers_pass_unseen():
    def check(value):
        checks.finite_non_negative("alpha", value)
        checks.fraction("alpha", value)
        return value

    assert jax.jit(check)(-1.0) == -1.0


@pytest.mark.parametrize("value", [0, -0.1, 1.01, float("nan")])
def test_fraction_refuses(value):
    with pytest.raises(InputError, match=f"size must be a number > 0 and <= 1, got {value}"):
        checks.fraction("size", value)


@pytest.mark.parametrize("value", [1, 3, np.int32(2)])
def test_count_takes(value):
    checks.count("steps", value, least=1, most=3)


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None])
def test_count_refuses(value):
    with pytest.raises(InputError, match=f"steps must be an integer >= 1, got {value}"):
        checks.count("steps", value, least=1, most=3)


def test_count_refuses_too_many():
    with pytest.raises(InputError, match="steps must be at most 3, got 4"):
        checks.count("steps", 4, most=3)


def test_folder_to_write_takes_what_is_or_can_be_made_and_leaves_no_trace(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for name in (".", "there", "link", "there/below", "new", "new/below/it"):
        checks.folder_to_write("output_dir", tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link", "there"]


def test_folder_to_write_refuses_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(InputError, match=f"output_dir {name} is a file, not a folder"):
            checks.folder_to_write("output_dir", tmp_path.__class__(name))
    with pytest.raises(InputError, match="output_dir file/x/y lies below file, a file"):
        checks.folder_to_write("output_dir", tmp_path.__class__("file/x/y"))


def test_folder_to_write_refuses_what_cannot_be_written(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks.tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        checks.folder_to_write("output_dir", tmp_path / "x")


GOOD = np.full((2, 4, 4, 3), 0.5, np.float32)


@pytest.mark.parametrize(
    "value",
    [GOOD, jnp.asarray(GOOD), GOOD[:0], GOOD * 0, GOOD * 2, GOOD.tolist(), GOOD.astype(float)],
)
def test_images_takes(value):
    images = checks.as_images("images", value)
    assert isinstance(images, jax.Array)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, np.asarray(value, np.float32))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (GOOD[0], r"images must be \[B, H, W, C\], got shape \(4, 4, 3\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "images must be floating point .* dtype uint8"),
        (GOOD * np.nan, "images must be finite, got NaN"),
        (GOOD * 3, r"images must lie in \[0, 1\], got values from 1.5 to 1.5"),
        (GOOD - 1, r"images must lie in \[0, 1\], got values from -0.5 to -0.5"),
        ([[0.5], [0.5, 0.5]], "images must be .* got uneven lists"),
        (GOOD * np.inf, r"images must lie in \[0, 1\], got values from inf to inf"),
    ],
)
def test_images_refuses(value, message):
    with pytest.raises(InputError, match=message):
        checks.as_images("images", value)


def test_traced_images_are_checked_for_what_is_known():
    def check(images):
        checks.as_images("images", images)
        return images

    assert jax.jit(check)(3 * GOOD).shape == GOOD.shape
    with pytest.raises(InputError, match="got shape"):
        jax.jit(check)(GOOD[0])
