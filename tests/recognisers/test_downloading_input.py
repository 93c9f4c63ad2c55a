"""Addresses and arguments of downloads that are refused before anything is asked."""

import io
import urllib.request

import pytest

from deid_jax.errors import InputError
from deid_jax.recognisers import downloading

SHA256 = 64 * "0"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "weights.bin"


def test_https_is_not_left_for_http():
    redirects = downloading._SafeRedirects()
    request = urllib.request.Request("https://example.com/a")
    for target in ("http://example.com/b", "http://localhost/b"):
        with pytest.raises(InputError, match="which is not https"):
            redirects.redirect_request(request, io.BytesIO(), 302, "Found", {}, target)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a",
        "ftp://example.com/a",
        "file:///etc/hostname",
        "/etc/hostname",
        "https://",
        "https://exa mple.com/a",
        "https://example.com/a\r\nX: y",
        "https://[1/a",
        "http://localhost.example.com/a",
        "",
    ],
)
def test_unsafe_addresses_are_refused(path, url):
    with pytest.raises(InputError, match="url must begin with https://"):
        downloading.download(url, path, sha256=SHA256)
    assert not path.parent.exists()


def test_host_that_is_no_name_is_refused(path):
    with pytest.raises(InputError, match="its host is no name"):
        downloading.download(f"https://{'a' * 64}.example.com/a", path, sha256=SHA256)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sha256", "abc"),
        ("sha256", "g" * 64),
        ("sha256", None),
        ("sha256", SHA256 + "\n"),
        ("size", 0),
        ("size", 1.5),
        ("timeout", 0),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("attempts", 0),
        ("backoff", -1.0),
        ("backoff", float("inf")),
    ],
)
def test_bad_arguments_are_refused(path, name, value):
    options = {"sha256": SHA256} | {name: value}
    with pytest.raises(InputError, match=name) as error:
        downloading.download("https://example.com/a", path, **options)
    assert "\n" not in str(error.value)
