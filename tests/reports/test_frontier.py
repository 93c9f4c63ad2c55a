import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from deid_jax.attacks import METHODS
from deid_jax.reports import frontier
from deid_jax.reports.frontier import draw_frontier
from tests.reports.runs_helpers import point as any_point


def point(method, l2, mr, model="model_a"):
    return any_point(method, model, l2=l2, mssim=1 - l2 / 50, mr=mr, clean_error=0.05)


def drawn(points):
    with Image.open(io.BytesIO(draw_frontier(points))) as image:
        return np.asarray(image.convert("RGB"))


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
    assert frontier.unbeaten(points) == expected


def test_rings_mark_the_goals_that_are_reached():
    def black(points):
        return np.sum(np.all(drawn(points)[80:400] < 40, axis=2))

    missed = [point("pfgvm", 1.0, 0.98), point("pfgvm", 2.0, 0.985)]
    reached = [point("pfgvm", 1.0, 0.98), point("pfgvm", 2.0, 0.992)]
    assert black(reached) > black(missed) + 50


def test_every_method_is_drawn_in_its_colour():
    names = [*METHODS, "stranger"]
    assert len({frontier._style(name)[0] for name in names}) == len(names)
    points = [point(m, 1.0 + i, (i + 1) / (len(names) + 1)) for i, m in enumerate(names)]
    picture = drawn(points).reshape(-1, 3)
    for name in names:
        colour = frontier._style(name)[0]
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.sum(np.all(picture == rgb, axis=1)) > 50, name


@pytest.mark.parametrize(("mr", "has_ring"), [(0.98, False), (0.99, True)])
def test_legend_explains_rings_where_there_are_any(monkeypatch, mr, has_ring):
    labels = []
    monkeypatch.setattr(
        Figure,
        "legend",
        lambda self, handles, **_: labels.extend(h.get_label() for h in handles),
    )
    draw_frontier([point("pfgvm", 1.0, mr)])
    assert labels[:3] == ["P-FGVM", "8-bit image", "float"]
    assert ("least L2 at MR ≥ 99, 99.5 %" in labels) == has_ring


@pytest.mark.slow
def test_same_points_same_bytes_and_a_row_per_recogniser():
    points = [point("pfgvm", 1.0, 0.9), point("pfgvm", 2.0, 1.0)]
    assert draw_frontier(points) == draw_frontier(points)
    both = [*points, point("pfgvm", 0.0, 0.9, model="vgg16")]
    assert drawn(both).shape[0] > 1.6 * drawn(points).shape[0]
