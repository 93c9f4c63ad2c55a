"""Weights by name: the table is sound, files are checked at every use, terms are shown once."""

import functools
import hashlib
import http.server
import importlib
import inspect
import os
import re
import threading
from pathlib import Path

import pytest

from deid_jax.errors import InputError
from deid_jax.recognisers import downloading, weights

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KNOWN = [name for name, row in weights.WEIGHTS.items() if row.sha256]
UNKNOWN = [name for name, row in weights.WEIGHTS.items() if not row.sha256]


@pytest.mark.parametrize("name", weights.WEIGHTS)
def test_rows_are_sound(name):
    row = weights.WEIGHTS[name]
    assert row.url.startswith("https://") and downloading._is_safe(row.url)
    # A branch may change, a commit or a release may not.
    assert re.search(r"/[0-9a-f]{40}/|/releases/download/|vlfeat\.org", row.url)
    assert row.sha256 is None or re.fullmatch("[0-9a-f]{64}", row.sha256)
    assert row.size is None or row.size > 2**20
    assert re.fullmatch(r"deid_jax\.models\.\w+:\w+", row.converter)
    module, function = row.converter.split(":")
    assert inspect.getdoc(getattr(importlib.import_module(module), function))
    for text in (row.what, row.licence, row.citation):
        assert text and "\n" not in text


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(requests, the served file); rows "ours" and "theirs" of the table are on it."""
    folder, requests = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *arguments):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    file = folder / "model.pt"
    file.write_bytes(CONTENT)
    row = weights.WEIGHTS["mobilefacenet_ms1m"]._replace(
        url=f"http://127.0.0.1:{server.server_port}/model.pt", size=len(CONTENT), sha256=SHA256
    )
    table = {"ours": row, "theirs": row._replace(sha256=None, size=None)}
    monkeypatch.setattr(weights, "WEIGHTS", table)
    monkeypatch.delenv("DEID_JAX_CACHE", raising=False)
    yield requests, file
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetch_downloads_once_and_shows_the_terms_once(server, tmp_path, capsys):
    requests, file = server
    shown, seen = [], []
    path = weights.fetch(
        "ours",
        cache_dir=tmp_path / "cache",
        show=shown.append,
        progress=lambda *now: seen.append(now),
    )
    assert path == tmp_path / "cache" / "ours.pt" and path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    text = "\n".join(shown)
    assert "licence: Apache-2.0" in text and "arXiv:1804.07573" in text and "model.pt" in text
    assert all("\n" not in line for line in shown)
    # Now without network.
    file.unlink()
    shown.clear()
    assert weights.fetch("ours", cache_dir=tmp_path / "cache", show=shown.append) == path
    assert len(requests) == 1 and not shown
    assert capsys.readouterr() == ("", "")


def test_terms_are_shown_on_standard_error_by_default(server, tmp_path, capsys):
    weights.fetch("ours", cache_dir=tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and "licence: Apache-2.0\n" in err


def test_damaged_file_is_fetched_anew(server, tmp_path):
    requests, _ = server
    shown = []
    path = weights.fetch("ours", cache_dir=tmp_path, show=shown.append)
    # Same size and time, another bit.
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(CONTENT[:-1] + b"\0")
    os.utime(path, ns=times)
    shown.clear()
    assert weights.fetch("ours", cache_dir=tmp_path, show=shown.append) == path
    assert path.read_bytes() == CONTENT and len(requests) == 2
    assert shown[0] == f"{path} is damaged and downloaded again"


def test_wrong_file_on_the_server_is_refused(server, tmp_path):
    _, file = server
    file.write_bytes(bytes(len(CONTENT)))
    with pytest.raises(InputError, match=f"instead of {SHA256}"):
        weights.fetch("ours", cache_dir=tmp_path, show=[].append)
    assert not (tmp_path / "ours.pt").exists()


def test_row_without_hash_takes_the_users(server, tmp_path):
    requests, _ = server
    fetch = functools.partial(weights.fetch, "theirs", cache_dir=tmp_path, show=[].append)
    with pytest.raises(InputError, match=r"theirs: no source states .* --sha256=\.\.\.$"):
        fetch()
    assert not requests
    path = fetch(sha256=SHA256.upper())
    assert path.read_bytes() == CONTENT
    assert fetch(sha256=SHA256) == path and len(requests) == 1
    # Whether file or hash is wrong nobody knows: nothing is deleted.
    with pytest.raises(InputError, match=f"{SHA256} instead of {'0' * 64}: correct --sha256"):
        fetch(sha256="0" * 64)
    assert path.read_bytes() == CONTENT and len(requests) == 1


def test_users_hash_must_be_the_tables(server, tmp_path):
    requests, _ = server
    with pytest.raises(InputError, match=f"sha256 of ours is {SHA256}, got 000"):
        weights.fetch("ours", cache_dir=tmp_path, sha256="0" * 64)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        weights.fetch("ours", cache_dir=tmp_path, sha256="")
    assert not requests
    weights.fetch("ours", cache_dir=tmp_path, sha256=SHA256.upper(), show=[].append)


def test_unknown_names_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        InputError, match=r"weights must be one of mobilefacenet_ms1m, .*, got x"
    ):
        weights.fetch("x", cache_dir=tmp_path)


@pytest.mark.parametrize("name", UNKNOWN)
def test_rows_that_need_a_hash_ask_for_it(name, tmp_path):
    with pytest.raises(InputError, match="--sha256"):
        weights.fetch(name, cache_dir=tmp_path)


def test_default_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.default_cache() == tmp_path / "xdg" / "deid_jax" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights.default_cache() == tmp_path / "home" / ".cache" / "deid_jax" / "weights"
    monkeypatch.setenv("DEID_JAX_CACHE", str(tmp_path / "ours"))
    path = weights.fetch("ours", show=[].append)
    assert path == tmp_path / "ours" / "ours.pt"

    def nobody():
        raise RuntimeError

    monkeypatch.delenv("DEID_JAX_CACHE")
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(InputError, match="set DEID_JAX_CACHE"):
        weights.default_cache()


def test_cache_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot write"):
        weights.fetch("ours", cache_dir=tmp_path / "file", show=[].append)


def test_known_rows_need_no_hash():
    assert KNOWN == ["mobilefacenet_ms1m", "mobilefacenet_casia"]
