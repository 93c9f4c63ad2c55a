import io

import numpy as np
import pytest
from PIL import Image

from deid_jax.reports import drawing, filmstrip
from deid_jax.reports.filmstrip import Film, FilmFrame, draw_animation, draw_filmstrip


def frame(value, named="Ada", probability=0.5):
    return FilmFrame(np.full((8, 8, 3), value, np.uint8), named, probability)


def film(values, person="Ada", original=200):
    return Film(person, frame(original), [frame(value) for value in values])


@pytest.mark.parametrize(
    ("num_steps", "count", "expected"),
    [
        (0, 8, (0,)),
        (1, 8, (0, 1)),
        (3, 8, (0, 1, 2, 3)),
        (64, 8, (0, 1, 2, 4, 8, 16, 32, 64)),
        (100, 3, (0, 1, 100)),
        (50, 1, (50,)),
    ],
)
def test_moments_are_spaced_by_factors(num_steps, count, expected):
    assert filmstrip.moments(num_steps, count) == expected


def test_strip_has_a_tile_per_frame_and_the_original():
    values = (10, 60, 110)
    strip = draw_filmstrip([film(values), film((5, 55, 105))], (0, 5, 50))
    side = filmstrip._FRAME
    for value in (*values, 5, 55, 105):
        assert np.sum(np.all(strip == value, axis=2)) >= side * side
    assert np.sum(np.all(strip == 200, axis=2)) >= 2 * side * side


@pytest.mark.parametrize(("named", "red"), [("Ada", False), ("Bob", True)])
def test_another_name_is_red(named, red):
    wrong = Film("Ada", frame(90), [frame(90, named)])
    strip = draw_filmstrip([wrong], (0,))
    assert np.any(np.all(strip == drawing.WRONG, axis=2)) == red


def test_animation_has_a_frame_per_moment_and_rests_on_the_last():
    data = draw_animation([film((10, 60, 110)), film((20, 70, 120))], (0, 5, 50))
    with Image.open(io.BytesIO(data)) as gif:
        assert gif.n_frames == 3
        durations = []
        for number, value in enumerate((10, 60, 110)):
            gif.seek(number)
            picture = np.asarray(gif.convert("RGB")).astype(int)
            near = np.all(np.abs(picture - value) <= 4, axis=2)
            assert near.sum() >= 0.9 * filmstrip._FRAME**2
            durations.append(gif.info["duration"])
        assert durations[2] > 5 * durations[0]
        assert gif.info["loop"] == 0
    assert data == draw_animation([film((10, 60, 110)), film((20, 70, 120))], (0, 5, 50))
