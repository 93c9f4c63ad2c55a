import pytest

from tests.videos.video_helpers import film, way


@pytest.fixture(scope="module", autouse=True)
def _attacked_lightly(light_attack):
    return light_attack


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """One face that moves, and sound; not to be changed."""
    path = tmp_path_factory.mktemp("source") / "in.mp4"
    return film(path, lambda number: [(1, way(number))], sound="aac")
