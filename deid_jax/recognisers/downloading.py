"""Downloads that are checked, go on where they were broken off, and appear whole or not at all.

While it lasts, a download of FILE is kept in FILE.part, described by FILE.part.json, under the
lock FILE.lock; FILE itself is there only once its length and SHA-256 are right.
"""

import hashlib
import http.client
import json
import math
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deid_jax import checks
from deid_jax.errors import InputError

# (bytes that are there, bytes in all or 0 where unknown).
Progress = Callable[[int, int], None]

# What may be tried again: too early, too many requests, failures of servers and proxies.
_TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))
_CHUNK = 2**18
_MOST_BYTES = 2**34  # where neither we nor the server know a length


class _BrokenOffError(Exception):
    """An attempt failed in a way that another may not."""


def no_progress(done: int, total: int) -> None:
    """Reports nothing."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str,
    size: int | None = None,
    progress: Progress = no_progress,
    timeout: float = 30.0,
    attempts: int = 4,
    backoff: float = 1.0,
) -> None:
    """Puts the file at `url` at `path`; does nothing where it already is.

    What an attempt that broke off has left is completed (HTTP Range) if the server says that
    the file is still the same (If-Range, RFC 9110 section 13.1.5), and fetched anew otherwise.
    Where nothing tells how long the file is, one that is wrong may have been cut off, and is
    fetched anew once. Several processes may ask for one file: the first fetches it, the others
    wait for it.

    Args:
      url: https, or http to this machine.
      path: the file; its folder is made if missing. A file of another hash is replaced.
      sha256: of the whole file, 64 hexadecimal digits.
      size: of the whole file in bytes, if known.
      progress: called with (bytes done, bytes in all or 0) as they come.
      timeout: the longest silence of the server, in seconds.
      attempts: how often to ask, at most. Errors that will stay (a missing file, a full disk)
        end it at once.
      backoff: seconds to wait before the second attempt; doubles with each.

    Raises:
      InputError: bad arguments; the file cannot be fetched or written; or its length or hash
        are wrong, and then nothing of it is kept. One line with the URL and the reason.
    """
    _check_file(url, sha256, size)
    _check_patience(timeout, attempts, backoff)
    import filelock

    path = Path(path)
    try:
        if _is_there(path, sha256):  # Asked without the lock, which takes a writable folder.
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f"{path.name}.lock")):
            if not _is_there(path, sha256):
                part = _Part(url, path, sha256.lower(), size, progress, timeout)
                _attempt(part, attempts=attempts, backoff=backoff)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise InputError(f"cannot write {path} from {url}: {_one_line(reason)}") from error


def _is_there(path: Path, sha256: str) -> bool:
    return path.is_file() and digest(path) == sha256.lower()


def digest(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(value: Any) -> None:
    """Refuses what is not a SHA-256 in hexadecimal digits."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise InputError(f"sha256 must be 64 hexadecimal digits, got {_one_line(value)!r}")


def _check_file(url: str, sha256: str, size: int | None) -> None:
    if not _is_safe(url):
        raise InputError(f"url must begin with https://, got {_one_line(url)!r}")
    check_sha256(sha256)
    if size is not None:
        checks.count("size", size, least=1)


def _check_patience(timeout: float, attempts: int, backoff: float) -> None:
    if not 0 < timeout < math.inf:
        raise InputError(f"timeout must be a number of seconds > 0, got {timeout}")
    checks.count("attempts", attempts, least=1)
    checks.finite_non_negative("backoff", backoff)


def _is_safe(url: str) -> bool:
    """Https to anywhere, http to this machine."""
    try:
        parts = urlsplit(url)
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return plain and bool(parts.hostname) and parts.scheme in ("https", "http")[: 1 + local]


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirection away from https, nor from this machine."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(newurl).scheme != urlsplit(req.full_url).scheme or not _is_safe(newurl):
            fp.close()
            raise InputError(f"it leads to {_one_line(newurl)}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _attempt(part: "_Part", *, attempts: int, backoff: float) -> None:
    """Tries until the file is there."""
    for attempt in range(1, attempts + 1):
        try:
            resumed = part.fetch()
            part.finish(resumed=resumed, last=attempt == attempts)
            return
        except _BrokenOffError as error:
            if attempt == attempts:
                times = f" ({attempts} attempts)" if attempts > 1 else ""
                raise InputError(f"cannot download {part.url}: {error}{times}") from error
        time.sleep(backoff * 2 ** (attempt - 1))


class _Part:
    """A file on its way."""

    def __init__(
        self,
        url: str,
        path: Path,
        sha256: str,
        size: int | None,
        progress: Progress,
        timeout: float,
    ) -> None:
        self.url, self.path, self.sha256, self.size = url, path, sha256, size
        self.progress, self.timeout = progress, timeout
        self.has_end = True  # Whether a file that was cut off would show.
        self.was_doubted = False
        self.part = path.with_name(f"{path.name}.part")
        self.about = path.with_name(f"{path.name}.part.json")

    def fetch(self) -> bool:
        """One request; whether it went on with what an earlier one had left.

        Raises:
          _BrokenOffError: it may help to ask again.
          InputError: it will not.
        """
        done, validator = self._left()
        if self.size is not None and done == self.size:
            return True
        headers = {"User-Agent": "deid_jax", "Accept-Encoding": "identity"}
        if done:
            headers |= {"Range": f"bytes={done}-", "If-Range": validator}
        try:
            with self._open(headers) as response:
                return self._receive(response, done)
        except InputError as error:
            raise InputError(f"cannot download {self.url}: {error}") from error

    def _open(self, headers: dict[str, str]) -> Any:
        """The server's answer, after redirections."""
        handlers: list[Any] = [_SafeRedirects]
        if self.url.startswith("http:"):
            handlers.append(urllib.request.ProxyHandler({}))  # This machine is no proxy's.
        opener = urllib.request.build_opener(*handlers)
        request = urllib.request.Request(self.url, headers=headers)
        try:
            return opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            status = _one_line(f"HTTP {error.code} {error.reason}")
            if error.code == 416 and "Range" in headers:
                self._forget()
            elif error.code not in _TRANSIENT:
                raise InputError(status) from error
            raise _BrokenOffError(status) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error) from error
        except UnicodeError as error:  # Names of hosts that IDNA does not know.
            raise InputError(f"its host is no name: {_one_line(error)}") from error

    def _failure(self, error: Exception) -> Exception:
        """What a failure of the network is to us."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            return _BrokenOffError(f"no answer for {self.timeout:g} s")
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        kind = (
            InputError if isinstance(reason, ssl.SSLCertVerificationError) else _BrokenOffError
        )
        return kind(_one_line(text))

    def _left(self) -> tuple[int, str]:
        """How many bytes are there to go on with, and what the server called them."""
        try:
            about = json.loads(self.about.read_text("utf-8"))
            known = (about["url"], about["sha256"]) == (self.url, self.sha256)
            validator, done = str(about["validator"]), self.part.stat().st_size
            if known and validator.isprintable() and 0 < done <= (self.size or _MOST_BYTES):
                return done, validator
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self._forget()
        return 0, ""

    def _forget(self) -> None:
        self.about.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def _receive(self, response: Any, done: int) -> bool:
        """Writes what comes, after the first `done` bytes if that is what comes."""
        resumed = response.status == 206
        if resumed:
            start, total = _content_range(response.headers.get("Content-Range", ""))
            if not done or start != done:
                self._forget()
                raise _BrokenOffError("the server sent another part than was asked for")
        elif response.status == 200:
            self._forget()
            done, length = 0, response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        else:
            raise _BrokenOffError(f"HTTP {response.status}")
        if self.size is not None and total not in (None, self.size):
            self._forget()
            raise InputError(f"it has {total} bytes instead of {self.size}")
        self.has_end = (self.size or total) is not None or response.chunked
        if not resumed and (validator := _validator(response.headers)):
            about = {"url": self.url, "sha256": self.sha256, "validator": validator}
            self.about.write_text(json.dumps(about), "utf-8")
        self._write(response, done, total if total is not None else self.size)
        return resumed

    def _write(self, response: Any, done: int, total: int | None) -> None:
        most = _MOST_BYTES if total is None else total
        with self.part.open("ab" if done else "wb") as file:
            self.progress(done, total or 0)
            while chunk := self._read(response):
                done += len(chunk)
                if done > most:
                    break
                file.write(chunk)
                self.progress(done, total or 0)
        if done > most:
            self._forget()
            raise InputError(f"it has over {most} bytes")
        if total is not None and done < total:
            raise _BrokenOffError(f"broken off after {done} of {total} bytes")

    def _read(self, response: Any) -> bytes:
        """What has come; nothing at the end."""
        try:
            return response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(error) from error

    def finish(self, *, resumed: bool, last: bool) -> None:
        """Moves the file into place if it is right.

        Args:
          resumed: it was put together, so that fetching it whole may help.
          last: there is no further attempt.
        """
        found = digest(self.part)
        if found == self.sha256:
            self.part.replace(self.path)
            self._forget()
            return
        self._forget()
        if resumed and not last:
            raise _BrokenOffError("its parts do not fit together")
        wrong = f"its SHA-256 is {found} instead of {self.sha256}"
        if not self.has_end:
            wrong += "; it may have been cut off, since nothing tells its length"
            if not self.was_doubted and not last:
                self.was_doubted = True
                raise _BrokenOffError(wrong)
        raise InputError(f"cannot download {self.url}: {wrong}")


def _content_range(text: str) -> tuple[int | None, int | None]:
    """The first byte and the whole length of "bytes 10-99/100"."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text.strip())
    if not found:
        return None, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _validator(headers: Any) -> str | None:
    """What If-Range may quote: a strong entity tag, or nothing."""
    tag = headers.get("ETag", "").strip()
    return tag if tag.startswith('"') and tag.isascii() and tag.isprintable() else None


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())[:200]
