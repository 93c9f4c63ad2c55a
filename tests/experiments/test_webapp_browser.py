"""The page in a browser, as people use it; whatever it asks of others fails the test."""

import contextlib
import dataclasses
import io
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from experiments import protect
from experiments._webapp.uploads import MAX_PIXELS
from tests.experiments.conftest import process
from tests.experiments.protect_helpers import ONE, TWO, records_of
from tests.photos.photo_bytes import SECRETS, talkative_jpeg

pytestmark = pytest.mark.slow
playwright_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")

# Of one run: a server's answer, a browser's, and what two cores make of it; milliseconds.
PATIENCE = 120_000
SETTINGS = ["--num_steps=2", "--seed=3"]
# What is said of several photos where nobody judges.
UNJUDGED = "photos unjudged: the faces found fool every surrogate, and there was no judge."


@pytest.fixture(scope="module")
def astronaut():
    """uint8[256, 256, 3], with one face that is found."""
    skimage_data = pytest.importorskip("skimage.data")
    return np.asarray(Image.fromarray(skimage_data.astronaut()).resize((256, 256)))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, folder of its temporary files); all recognisers are fooled by little."""
    with _served(tmp_path_factory, f"--recogniser={ONE},{TWO}") as found:
        yield found


@contextlib.contextmanager
def _served(tmp_path_factory, *arguments):
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TMPDIR", str(folder))
        started = process(
            "webapp", *arguments, "--threshold=0.9999", *SETTINGS, "--port=0", cwd=folder
        )
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+", started.stdout.readline())[0]
        yield address, folder
    finally:
        started.terminate()
        out, err = started.communicate(timeout=60)
    assert (started.returncode, out, err) == (0, "ended\n", "")
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@dataclasses.dataclass
class Tab:
    """A page of the server in a browser of its own, and what it asked for."""

    page: object
    asked: list

    def choose(self, *files):
        """Uploads paths, or (name, content)."""
        with tempfile.TemporaryDirectory() as folder:
            given = []
            for file in files:
                path = file if isinstance(file, Path) else Path(folder, file[0])
                if path is not file:
                    path.write_bytes(file[1])
                given.append(path)
            self.page.set_input_files("#uploads input[type=file]", given)
            self.expect("#uploads a[download]").to_have_count(len(files))

    def start(self):
        self.page.click("#protect")

    def ended(self):
        """The lines of what is said in the end."""
        kinds = ("right", "open", "wrong")
        self.page.wait_for_selector(", ".join(f"#status .said.{kind}" for kind in kinds))
        return self.page.locator("#status .said").all_inner_texts()

    def protect(self, *files):
        self.choose(*files)
        self.start()
        return self.ended()

    def expect(self, selector):
        return playwright_api.expect(self.page.locator(selector))

    def pixels(self, kind):
        """What is shown, as the browser got it."""
        self.expect(f"#{kind} img").to_be_visible()
        image = self.page.locator(f"#{kind} img")
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        answer = self.page.request.get(image.get_attribute("src"))
        assert answer.ok
        return np.asarray(Image.open(io.BytesIO(answer.body())))

    def downloads(self):
        """{name: content} of all files that can be downloaded."""
        first, *others = self.page.locator("#downloads a[download]").all()
        with self.page.expect_download() as started:
            first.click()
        found = {started.value.suggested_filename: Path(started.value.path()).read_bytes()}
        # Browsers ask before they take many at once.
        for link in others:
            answer = self.page.request.get(link.get_attribute("href"))
            assert answer.ok
            found[link.get_attribute("download")] = answer.body()
        return found

    def rows(self):
        """The cells of the table of verdicts."""
        rows = self.page.locator("#verdict tbody tr").all()
        return [row.locator("td").all_inner_texts() for row in rows]


@pytest.fixture
def new_tab(browser):
    """Opens a page; fails in the end if one asked another than its own server."""
    with contextlib.ExitStack() as opened:
        tabs, wrong = [], []

        def open_tab(address, **options):
            context = opened.enter_context(contextlib.closing(browser.new_context(**options)))
            context.set_default_timeout(PATIENCE)
            tab = Tab(context.new_page(), [])
            context.on("request", lambda request: tab.asked.append(request.url))
            tab.page.on("websocket", lambda socket: tab.asked.append(socket.url))
            context.on("weberror", lambda error: wrong.append(str(error.error)))
            tab.page.goto(address)
            tab.page.wait_for_selector("#protect")
            tabs.append((tab, urlsplit(address).netloc))
            return tab

        yield open_tab
    for tab, own in tabs:
        assert tab.asked
        # blob: and data: are the page's own memory.
        outside = [url for url in tab.asked if not url.startswith(("blob:", "data:"))]
        assert {urlsplit(url).netloc for url in outside} == {own}
    assert wrong == []


def png(pixels):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def by_command(folder, name, content, *arguments):
    """(record, content) that `experiments.protect` makes of a file."""
    (folder / "in").mkdir()
    (folder / "in" / name).write_bytes(content)
    protect.main([f"--input={folder / 'in'}", f"--output={folder / 'out'}", *arguments])
    return records_of(folder / "out")[name], (folder / "out" / name).read_bytes()


def test_upload_protect_compare_download(server, new_tab, astronaut, tmp_path):
    address, _ = server
    content = talkative_jpeg(astronaut, orientation=1)
    assert all(secret in content for secret in SECRETS)
    record, expected = by_command(
        tmp_path,
        "at home.jpg",
        content,
        f"--recogniser={ONE},{TWO}",
        "--threshold=0.9999",
        "--strength=strong",
        *SETTINGS,
    )
    tab = new_tab(address)
    tab.page.check("#strength input[value=strong]")
    (said,) = tab.protect(("at home.jpg", content))
    assert said == (
        "at home.jpg: unjudged. 1 face found, matched by no surrogate; there was no judge."
    )

    before, after, difference = map(tab.pixels, ("before", "after", "difference"))
    np.testing.assert_array_equal(before, np.asarray(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(after, np.asarray(Image.open(io.BytesIO(expected))))
    assert difference.shape == before.shape
    whole = np.clip(128 + 20 * (after.astype(int) - before), 0, 255)
    marked = np.any(whole != difference, axis=2)
    (face,) = record["faces"]
    left, top, width, height = (round(edge) for edge in face["box"])
    inside = np.zeros_like(marked)
    inside[top - 2 : top + height + 3, left - 2 : left + width + 3] = True
    assert marked.any() and not (marked & ~inside).any()  # Its box and number alone.

    rows = tab.rows()
    assert len(rows) == 2
    for row, verdict in zip(rows, face["verdicts"], strict=True):
        name, says, likeness = row[-3:]
        assert name == verdict["recogniser"]
        assert verdict["fooled"] and says == "fooled"
        assert likeness == f"{verdict['similarity']:.3f} < 0.9999"
    assert f"({face['psnr']:.1f} dB)" in rows[0][1]

    tab.page.locator("#view label", has_text="Face 1").click()
    playwright_api.expect(tab.page.locator("#view input").nth(1)).to_be_checked()
    tab.page.wait_for_function(
        "width => document.querySelector('#difference img').naturalWidth < width",
        arg=before.shape[1],
    )
    parts = [tab.pixels(kind) for kind in ("before", "after", "difference")]
    y, x = (max(round(n), 0) for n in (face["box"][1] - height / 2, face["box"][0] - width / 2))
    window = np.s_[y : y + len(parts[0]), x : x + parts[0].shape[1]]
    for part, picture in zip(parts, (before, after, whole), strict=True):
        np.testing.assert_array_equal(part, picture[window])

    assert tab.downloads() == {"at home.jpg": expected}
    assert not any(secret in expected for secret in SECRETS)


def test_what_is_no_photo_or_too_large_is_said(server, new_tab, astronaut, tmp_path):
    address, _ = server
    large, letter = tmp_path / "large.png", tmp_path / "letter.png"
    Image.new("1", (8200, 6220)).save(large)
    assert MAX_PIXELS < 8200 * 6220
    letter.write_text("Dear all")
    tab = new_tab(address)
    (said,) = tab.protect(letter)
    assert said == "letter.png is damaged or no image of JPEG, PNG, WEBP, TIFF, BMP."
    for selector in ("#before", "#verdict table", "#downloads"):
        tab.expect(selector).not_to_be_visible()

    tab = new_tab(address)
    nobody = ("nobody.png", png(np.full((200, 200, 3), 90, np.uint8)))
    lines = tab.protect(letter, large, ("a.png", png(astronaut)), nobody)
    assert lines == [
        f"1 of 4 {UNJUDGED}",
        "letter.png is damaged or no image of JPEG, PNG, WEBP, TIFF, BMP.",
        "large.png has more than 50000000 pixels: 8200x6220.",
        "No face was found in nobody.png: there is nothing to download.",
    ]
    # The one that there is to see is shown; each of the others says why there is none.
    np.testing.assert_array_equal(tab.pixels("before"), astronaut)
    tab.page.click("#choice input")
    tab.page.get_by_role("option", name="2: large.png").click()
    tab.expect("#said").to_contain_text("large.png has more than")
    tab.expect("#before").not_to_be_visible()
    tab.page.click("#choice input")
    tab.page.get_by_role("option", name="3: a.png").click()
    tab.expect("#said").to_contain_text("a.png: unjudged. 1 face found")
    np.testing.assert_array_equal(tab.pixels("before"), astronaut)
    assert list(tab.downloads()) == ["a.png"]


def test_twenty_at_once_and_one_too_many(server, new_tab, astronaut):
    address, _ = server
    files = [(f"{n:02d}.png", png(np.roll(astronaut, n, axis=1))) for n in range(21)]
    tab = new_tab(address)
    lines = tab.protect(*files)
    assert lines == ["21 files are too many: at most 20 at once."]
    tab.expect("#downloads").not_to_be_visible()

    tab = new_tab(address)
    lines = tab.protect(*files[:20])
    assert lines == [f"20 of 20 {UNJUDGED}"]
    found = tab.downloads()
    assert list(found) == [name for name, _ in files[:20]]
    assert len(set(found.values())) == 20
    for name, content in files[:20]:
        assert found[name] != content
        assert Image.open(io.BytesIO(found[name])).size == (256, 256)


def test_two_tabs_do_not_see_each_other(server, new_tab, astronaut):
    address, _ = server
    photos = {"first.png": astronaut, "second.png": astronaut[:, ::-1]}
    tabs = {name: new_tab(address) for name in photos}
    for name, tab in tabs.items():
        tab.choose((name, png(photos[name])))
    for tab in tabs.values():
        tab.start()
    for name, tab in tabs.items():
        (said,) = tab.ended()
        assert said.startswith(f"{name}: unjudged. 1 face found, matched by no surrogate")
    contents = []
    for name, tab in tabs.items():
        (other,) = photos.keys() - {name}
        np.testing.assert_array_equal(tab.pixels("before"), photos[name])
        found = tab.downloads()
        assert list(found) == [name]
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(found[name]))), tab.pixels("after")
        )
        assert other not in tab.page.content()
        contents.append(found[name])
    assert contents[0] != contents[1]


def test_what_a_tab_made_before_is_gone(server, new_tab, astronaut):
    address, folder = server
    tab = new_tab(address)
    tab.protect(("before.png", png(astronaut)))
    link = tab.page.locator("#downloads a[download]").get_attribute("href")
    assert tab.page.request.get(link).ok
    tab.page.reload()
    tab.page.wait_for_selector("#protect")
    tab.protect(("after.png", png(astronaut)))
    tab.start()
    tab.expect("#downloads").not_to_be_visible()
    tab.ended()
    assert list(tab.downloads()) == ["after.png"]
    made = [path.name for path in folder.rglob("protected/*")]
    assert made.count("after.png") == 1


def test_names_of_files_run_nothing(server, new_tab, astronaut):
    tab = new_tab(server[0])
    tab.page.evaluate("window.evil = 0")
    name = "<img src=x onerror=evil=1>.png"
    lines = tab.protect((name, png(astronaut)), (f"no {name}", b"Dear all"))
    assert lines[0].startswith("1 of 2 photos")
    assert "onerror=evil=1" in lines[1]
    tab.page.click("#choice input")
    tab.page.wait_for_timeout(500)
    assert tab.page.evaluate("window.evil") == 0


@pytest.mark.parametrize(("width", "scheme"), [(420, "dark"), (1280, "light")])
def test_all_of_it_fits_the_window(width, scheme, server, new_tab, astronaut):
    tab = new_tab(server[0], color_scheme=scheme, viewport={"width": width, "height": 800})
    tab.protect(("a.png", png(astronaut)), ("letter.png", b"Dear all"))
    tab.pixels("difference")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    places = [tab.page.locator(f"#{kind}").bounding_box() for kind in ("before", "after")]
    beside = places[0]["y"] == places[1]["y"]
    assert beside == (width == 1280)
