import io
import math

import numpy as np
from PIL import Image

from deid_jax.reports.distortion_plot import Series, draw_success_curves

NEAR, FAR = np.array([0.5, 1.0, 1.5, 2.0]), np.array([1.0, 4.0, math.inf, 8.0])


def drawn(panels):
    png = draw_success_curves(panels, title="title")
    assert png == draw_success_curves(panels, title="title")
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def share_of(pixels, colour):
    return np.mean(np.abs(pixels - colour).max(axis=2) < 40)


def test_draws_a_panel_a_goal_and_a_curve_a_run():
    one = drawn({"near": [Series("ours", NEAR)]})
    two = drawn({"near": [Series("ours", NEAR)], "far": [Series("ours", FAR)]})
    assert two.shape[1] > 1.5 * one.shape[1]
    # The first colour of ours, and the same line dashed where it is a peer's.
    orange = (0xD5, 0x5E, 0x00)
    assert share_of(one, orange) > 1.5 * share_of(
        drawn({"near": [Series("theirs", NEAR, is_peer=True)]}), orange
    )


def test_draws_what_has_no_scale_of_its_own():
    zero, failed = np.zeros(3), np.full(3, math.inf)
    assert (drawn({"": [Series("a", zero)]}) != drawn({"": [Series("a", failed)]})).any()


def test_more_runs_than_colours_look_different():
    def runs(count):
        return [Series(str(i), NEAR * (1 + i / 9), is_peer=True) for i in range(count)]

    assert drawn({"": runs(15)}).shape[1] == drawn({"": runs(1)}).shape[1]
