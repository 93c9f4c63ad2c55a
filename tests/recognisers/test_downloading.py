"""Downloads against a server on this machine that does everything a bad network does."""

import hashlib
import multiprocessing
import threading
import time

import pytest

from deid_jax.errors import InputError
from deid_jax.recognisers import downloading
from tests.bad_network import (
    CONTENT,
    OTHER,
    Server,
    answer,
    fails,
    hangs_up,
    moved,
    slow,
    whole,
)

SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()


@pytest.fixture
def serve():
    servers = []

    def start(*plan):
        servers.append(Server(*plan))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def fetch(server, path, **options):
    settings = {"sha256": SHA256, "timeout": 0.5, "backoff": 0.01} | options
    downloading.download(server.url, path, **settings)


def refused(server, path, **options):
    with pytest.raises(InputError) as error:
        fetch(server, path, **options)
    message = str(error.value)
    assert server.url in message and "\n" not in message
    return message


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "weights.bin"


def left(path):
    return sorted(file.name for file in path.parent.iterdir() if file.suffix != ".lock")


def test_download_arrives_whole_with_progress(serve, path):
    server, seen = serve(whole()), []
    fetch(server, path, size=len(CONTENT), progress=lambda *now: seen.append(now))
    assert path.read_bytes() == CONTENT
    assert left(path) == ["weights.bin"]
    done, totals = zip(*seen, strict=True)
    assert done[0] == 0 and done[-1] == len(CONTENT) and list(done) == sorted(done)
    assert set(totals) == {len(CONTENT)}


def test_what_is_there_needs_no_network(serve, path):
    server = serve(whole())
    fetch(server, path)
    fetch(server, path, sha256=SHA256.upper())
    assert len(server.requests) == 1
    path.write_bytes(OTHER)
    fetch(server, path)
    assert path.read_bytes() == CONTENT and len(server.requests) == 2


def test_broken_off_download_goes_on(serve, path):
    server = serve(whole(stop_at=300_000), whole(stop_at=500_000), whole())
    seen = []
    fetch(server, path, progress=lambda *now: seen.append(now[0]))
    assert path.read_bytes() == CONTENT
    assert [r.get("Range") for r in server.requests] == [
        None,
        "bytes=300000-",
        "bytes=500000-",
    ]
    assert [r.get("If-Range") for r in server.requests] == [None, '"v1"', '"v1"']
    assert seen == sorted(seen)


def test_later_run_goes_on_where_an_earlier_one_gave_up(serve, path):
    server = serve(whole(stop_at=300_000), whole())
    message = refused(server, path, attempts=1)
    assert message.endswith("broken off after 300000 of 700001 bytes")
    assert left(path) == ["weights.bin.part", "weights.bin.part.json"]
    fetch(server, path)
    assert server.requests[1]["Range"] == "bytes=300000-"
    assert path.read_bytes() == CONTENT and left(path) == ["weights.bin"]


def test_part_of_another_file_is_not_gone_on_with(serve, path):
    server = serve(whole(OTHER, stop_at=300_000), whole())
    refused(server, path, attempts=1, sha256=OTHER_SHA256)
    fetch(server, path)
    assert "Range" not in server.requests[1] and path.read_bytes() == CONTENT


def test_stalling_server_is_left_and_asked_again(serve, path):
    server = serve(whole(stop_at=300_000, stall=True), whole())
    start = time.monotonic()
    fetch(server, path, timeout=0.3)
    assert 0.3 <= time.monotonic() - start < 5
    assert path.read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=300000-"


def test_server_that_never_answers(serve, path):
    server = serve(lambda handler, server: server.stop.wait(10))
    message = refused(server, path, timeout=0.2, attempts=2)
    assert message.endswith("no answer for 0.2 s (2 attempts)")
    assert len(server.requests) == 2 and not path.exists()


def test_server_that_ignores_range_is_read_from_the_start(serve, path):
    server = serve(whole(stop_at=300_000), whole(ranges=False))
    fetch(server, path)
    assert server.requests[1]["Range"] == "bytes=300000-"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_tag_nothing_is_glued(serve, path, etag):
    server = serve(whole(stop_at=300_000, etag=etag), whole(etag=etag))
    fetch(server, path)
    assert "Range" not in server.requests[1] and path.read_bytes() == CONTENT


def test_file_that_changes_between_attempts_is_fetched_anew(serve, path):
    server = serve(whole(OTHER, '"v0"', stop_at=300_000), whole())
    fetch(server, path)
    assert server.requests[1]["If-Range"] == '"v0"'
    assert path.read_bytes() == CONTENT


def test_glued_parts_that_do_not_fit_are_fetched_anew(serve, path):
    """A server that says that the file is the same, and lies."""
    server = serve(whole(OTHER, stop_at=300_000), whole(), whole())
    fetch(server, path)
    assert [r.get("Range") for r in server.requests] == [None, "bytes=300000-", None]
    assert path.read_bytes() == CONTENT


def test_part_with_another_start_than_asked_for_is_not_used(serve, path):
    def wrong(handler, server):
        spread = f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}"
        answer(handler, 206, CONTENT[5:], Content_Range=spread)

    server = serve(whole(stop_at=300_000), wrong, whole())
    fetch(server, path)
    assert path.read_bytes() == CONTENT and "Range" not in server.requests[2]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_part_that_is_already_whole(serve, path, size):
    """The process ended between the last byte and the renaming."""
    server = serve(whole(stop_at=300_000), whole())
    refused(server, path, attempts=1)
    path.with_name("weights.bin.part").write_bytes(CONTENT)
    fetch(server, path, size=size)
    assert path.read_bytes() == CONTENT and left(path) == ["weights.bin"]
    assert len(server.requests) == (3 if size is None else 1)


def test_wrong_hash_is_refused_at_once_and_nothing_kept(serve, path):
    server = serve(whole(OTHER))
    message = refused(server, path)
    assert message.endswith(f"its SHA-256 is {OTHER_SHA256} instead of {SHA256}")
    assert len(server.requests) == 1 and left(path) == []


def test_wrong_hash_leaves_the_file_that_was_there(serve, path):
    path.parent.mkdir()
    path.write_bytes(b"older")
    refused(serve(whole(OTHER)), path)
    assert path.read_bytes() == b"older" and left(path) == ["weights.bin"]


def test_wrong_size_is_refused_before_it_comes(serve, path):
    server = serve(whole())
    message = refused(server, path, size=700_000)
    assert message.endswith("it has 700001 bytes instead of 700000")
    assert left(path) == []


def test_without_a_length_the_size_bounds_what_is_taken(serve, path):
    def endless(handler, server):
        answer(handler, 200, CONTENT, Content_Length=None)

    fetch(serve(endless), path, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    path.unlink()
    assert "over 700000 bytes" in refused(serve(endless), path, size=700_000)
    assert "broken off after 700001 of 700002" in refused(serve(endless), path, size=700_002)
    fetch(serve(endless), path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("etag", [None, '"v1"'])
def test_file_without_a_length_that_is_cut_off_is_fetched_anew(serve, path, etag):
    def cut(handler, server):
        answer(handler, 200, CONTENT[:300_000], Content_Length=None, ETag=etag)

    def all_of_it(handler, server):
        answer(handler, 200, CONTENT, Content_Length=None, ETag=etag)

    server = serve(cut, all_of_it)
    fetch(server, path)
    assert path.read_bytes() == CONTENT and left(path) == ["weights.bin"]
    assert ["Range" in request for request in server.requests] == [False, False]


def test_file_without_a_length_is_doubted_once(serve, path):
    def cut(handler, server):
        answer(handler, 200, CONTENT[:300_000], Content_Length=None)

    for attempts, requests in ((1, 1), (4, 2)):
        server = serve(cut)
        message = refused(server, path, attempts=attempts)
        assert f"instead of {SHA256}; it may have been cut off" in message
        assert len(server.requests) == requests and left(path) == []


def test_pieces_tell_their_end(serve, path):
    """A file that is sent in pieces (chunked) is whole, and wrong for another reason."""

    def pieces(content):
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        headers = {"Content_Length": None, "Transfer_Encoding": "chunked"}
        return lambda handler, server: answer(handler, 200, body, **headers)

    server = serve(pieces(OTHER))
    assert refused(server, path).endswith(f"instead of {SHA256}") and len(server.requests) == 1
    fetch(serve(pieces(CONTENT)), path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_failing_server_is_asked_again(serve, path, status):
    server = serve(fails(status), hangs_up, whole())
    fetch(server, path)
    assert path.read_bytes() == CONTENT and len(server.requests) == 3


def test_server_that_keeps_failing_is_given_up(serve, path):
    server = serve(fails(500))
    message = refused(server, path, attempts=3)
    assert message.endswith("HTTP 500 Internal Server Error (3 attempts)")
    assert len(server.requests) == 3 and left(path) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_missing_file_is_not_asked_for_again_in_one_call(serve, path, status):
    server = serve(fails(status), whole())
    assert f"HTTP {status} " in refused(server, path)
    assert len(server.requests) == 1
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_attempts_wait_longer_and_longer(serve, path):
    server, start = serve(fails(503)), time.monotonic()
    refused(server, path, attempts=4, backoff=0.05)
    assert 0.35 <= time.monotonic() - start < 3


def test_no_server_at_all(serve, path):
    server = serve(whole())
    server.close()
    with pytest.raises(InputError, match=r"Connection refused \(2 attempts\)"):
        fetch(server, path, attempts=2)


def test_redirections_are_followed_within_the_scheme_only(serve, path):
    target = serve(whole(stop_at=300_000), whole())
    server = serve(moved(target.url))
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert target.requests[1]["Range"] == "bytes=300000-"
    path.unlink()
    for elsewhere in ("http://example.com/x", "https://example.com/x", "ftp://127.0.0.1/x"):
        message = refused(serve(moved(elsewhere)), path)
        assert elsewhere in message
    assert refused(serve(moved("file:///etc/hostname")), path)
    assert left(path) == []


def test_this_machine_is_asked_without_a_proxy(serve, path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    fetch(serve(whole()), path)
    assert path.read_bytes() == CONTENT


def test_folder_that_cannot_be_written(serve, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    message = refused(serve(whole()), tmp_path / "file" / "weights.bin")
    assert "cannot write" in message


def test_full_disk_is_no_failure_of_the_network(serve, path, monkeypatch):
    path.parent.mkdir()
    path.with_name("weights.bin.part").symlink_to("/dev/full")
    monkeypatch.setattr(downloading._Part, "_forget", lambda part: None)  # The link stays.
    server = serve(whole())
    assert "No space left on device" in refused(server, path)
    assert len(server.requests) == 1 and not path.exists()


def test_interrupted_download_can_go_on(serve, path):
    server = serve(whole())

    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, path, progress=interrupt)
    there = path.with_name("weights.bin.part").stat().st_size
    assert 0 < there < len(CONTENT)
    fetch(server, path)
    assert server.requests[1]["Range"] == f"bytes={there}-"
    assert path.read_bytes() == CONTENT


def test_threads_that_want_one_file_fetch_it_once(serve, path):
    server = serve(slow)
    threads = [threading.Thread(target=fetch, args=(server, path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1 and left(path) == ["weights.bin"]


def _download(url, path):
    downloading.download(url, path, sha256=SHA256)


def test_processes_that_want_one_file_fetch_it_once(serve, path):
    server, context = serve(slow), multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_download, args=(server.url, path), daemon=True)
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert path.read_bytes() == CONTENT and len(server.requests) == 1
