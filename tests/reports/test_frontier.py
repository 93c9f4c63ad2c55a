import io

import numpy as np
import pytest
from PIL import Image

from deid_jax.attacks import METHODS
from deid_jax.reports import frontier
from deid_jax.reports.comparison import Point


def point(method, l2, mr, model="model_a", **figures):
    values = {"l2": l2, "mssim": 1 - l2 / 50, "mr": mr}
    values |= {f"{name}_uint8": value for name, value in values.items()}
    values |= {"clean_error": 0.05, "num_images": 40, "dataset": "folder", "split": "all"}
    return Point(method, model, {}, values | figures)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1.0, 0.5)], [(1.0, 0.5)]),
        ([(2.0, 0.9), (1.0, 0.5), (3.0, 0.8)], [(1.0, 0.5), (2.0, 0.9)]),
        ([(1.0, 0.5), (1.0, 0.7)], [(1.0, 0.7)]),
        ([(0.1, 0.5), (0.2, 0.9), (0.3, 0.9)], [(0.1, 0.5), (0.2, 0.9)]),
    ],
)
def test_frontier_is_what_nothing_beats(points, expected):
    assert frontier.frontier(points) == expected


def test_rings_mark_the_goals_that_are_reached():
    def black(points):
        return np.sum(np.all(drawn(points)[80:400] < 40, axis=2))

    missed = [point("pfgvm", 1.0, 0.98), point("pfgvm", 2.0, 0.985)]
    reached = [point("pfgvm", 1.0, 0.98), point("pfgvm", 2.0, 0.992)]
    assert black(reached) > black(missed) + 50


def drawn(points):
    with Image.open(io.BytesIO(frontier.draw(points))) as image:
        return np.asarray(image.convert("RGB"))


def test_every_method_is_drawn_in_its_colour():
    names = [*METHODS, "stranger"]
    assert len({frontier._style(name)[0] for name in names}) == len(names)
    points = [point(m, 1.0 + i, (i + 1) / (len(names) + 1)) for i, m in enumerate(names)]
    picture = drawn(points).reshape(-1, 3)
    for name in names:
        colour = frontier._style(name)[0]
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.sum(np.all(picture == rgb, axis=1)) > 50, name


def test_same_points_same_bytes_and_a_row_per_recogniser():
    points = [point("pfgvm", 1.0, 0.9), point("pfgvm", 2.0, 1.0)]
    assert frontier.draw(points) == frontier.draw(points)
    both = [*points, point("pfgvm", 1.5, 0.9, model="vgg16")]
    assert drawn(both).shape[0] > 1.6 * drawn(points).shape[0]


@pytest.mark.parametrize("l2", [0.0, 1e-4, 40.0])
def test_any_distance_can_be_drawn(l2):
    assert drawn([point("pfgvm", l2, 0.5), point("mask", 30.0, 0.6)]).shape[2] == 3


def test_figures_that_are_not_there_are_no_obstacle():
    lonely = point("pfgvm", 1.0, 0.9)
    figures = {k: v for k, v in lonely.figures.items() if k.startswith(("l2", "mssim", "mr"))}
    assert drawn([Point("pfgvm", "model_a", {}, figures)]).ndim == 3
