"""Weights by name: the table is sound, files are checked at every use, terms are shown once."""

import dataclasses
import functools
import gc
import hashlib
import importlib
import inspect
import os
import re
from pathlib import Path

import pytest

from deid_jax.recognisers import weights
from tests.bad_network import CONTENT, Server, fails, hangs_up, whole
from tests.helpers import refused

# Of downloads that fail, pooch leaves the connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_rows_are_sound():
    for row in weights.WEIGHTS.values():
        # A branch may change, a commit or a release may not.
        fixed = "https://.*(/[0-9a-f]{40}/|/releases/download/|vlfeat.org)|package:face_rec"
        assert re.match(fixed, row.url)
        assert row.sha256 is None or re.fullmatch("[0-9a-f]{64}", row.sha256)
        module, function = row.converter.split(":")
        assert inspect.getdoc(getattr(importlib.import_module(module), function))
        for text in (row.what, row.licence, row.citation):
            assert text and "\n" not in text


@pytest.fixture
def serve(tmp_path, monkeypatch, request):
    """Starts a server of a plan; rows "ours" and "theirs" of the table are on it."""
    monkeypatch.setenv("DEID_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def start(*plan):
        server = Server(*plan)
        request.addfinalizer(server.close)
        row = dataclasses.replace(
            weights.WEIGHTS["mobilefacenet_ms1m"], url=server.url, sha256=SHA256
        )
        table = {"ours": row, "theirs": dataclasses.replace(row, sha256=None)}
        monkeypatch.setattr(weights, "WEIGHTS", table)
        return server

    yield start
    gc.collect()


def test_fetch_downloads_once_and_shows_the_terms_once(serve, tmp_path, capsys):
    server, seen = serve(whole()), []
    path = weights.fetch("ours", progress=lambda *now: seen.append(now))
    assert path == tmp_path / "cache" / "ours.bin" and path.read_bytes() == CONTENT
    assert seen == sorted(seen) and seen[-1] == (len(CONTENT), len(CONTENT))
    out, err = capsys.readouterr()
    assert out == ""
    for text in ("licence: Apache-2.0\n", "arXiv:1804.07573", server.url):
        assert text in err
    # Now without network.
    assert weights.fetch("ours") == path
    assert len(server.requests) == 1 and capsys.readouterr() == ("", "")


def test_damaged_file_is_downloaded_again(serve, capsys):
    server = serve(whole())
    path = weights.fetch("ours")
    # Same size and time, another bit.
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(CONTENT[:-1] + b"\0")
    os.utime(path, ns=times)
    assert weights.fetch("ours") == path
    assert path.read_bytes() == CONTENT and len(server.requests) == 2
    assert f"{path} is damaged and downloaded again\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (fails(404), "404 Client Error"),
        (hangs_up, "Remote"),
        (whole(stop_at=1000), "IncompleteRead"),
        (whole(bytes(1000)), f"does not have the SHA-256 {SHA256}"),
    ],
)
def test_failed_downloads_end_in_one_line_and_leave_nothing(serve, tmp_path, reply, reason):
    server = serve(reply)
    with refused(f"cannot download {server.url}.*{reason}"):
        weights.fetch("ours")
    assert not list((tmp_path / "cache").iterdir())


def test_without_network_or_folder(serve, tmp_path, monkeypatch):
    serve(whole()).close()
    with refused("Connection refused"):
        weights.fetch("ours")
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEID_JAX_CACHE", str(tmp_path / "file"))
    with refused(r"cannot download .* to .*file/ours.bin: "):
        weights.fetch("ours")


def test_row_without_hash_takes_the_users(serve):
    server, fetch = serve(whole()), functools.partial(weights.fetch, "theirs")
    with refused(r"theirs: no source states .* --sha256=\.\.\.$"):
        fetch()
    with refused("64 hexadecimal digits, got 'x'"):
        fetch(sha256="x")
    assert not server.requests
    path = fetch(sha256=SHA256.upper())
    assert fetch(sha256=SHA256) == path and len(server.requests) == 1
    # Whether file or hash is wrong nobody knows: nothing is deleted.
    with refused(f"{SHA256} instead of {'0' * 64}: correct --sha256"):
        fetch(sha256="0" * 64)
    assert path.read_bytes() == CONTENT and len(server.requests) == 1


def test_names_and_hashes_must_be_the_tables(serve):
    serve(whole())
    with refused(f"sha256 of ours is {SHA256}, got 000"):
        weights.fetch("ours", sha256="0" * 64)
    with refused("weights must be one of ours, theirs, got x"):
        weights.fetch("x")


def test_default_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("DEID_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.default_cache() == tmp_path / "xdg" / "deid_jax" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights.default_cache() == tmp_path / "home" / ".cache" / "deid_jax" / "weights"

    def nobody():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", nobody)
    with refused("set DEID_JAX_CACHE"):
        weights.default_cache()
