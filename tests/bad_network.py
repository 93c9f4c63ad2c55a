"""A server on this machine that does everything a bad network does."""

import http.server
import threading
import time

import numpy as np

CONTENT = np.random.default_rng(0).bytes(700_001)
OTHER = np.random.default_rng(1).bytes(700_001)


class Server:
    """Answers request i with `plan[i]`, the last one again and again."""

    def __init__(self, *plan):
        self.plan, self.requests, self.stop = plan, [], threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.close_connection = True
                number = len(outer.requests)
                outer.requests.append(dict(self.headers))
                outer.plan[min(number, len(outer.plan) - 1)](self, outer)

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/weights.bin"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.stop.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def answer(handler, status, body, **headers):
    handler.send_response(status)
    for name, value in {"Content_Length": len(body), **headers}.items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)


def whole(content=CONTENT, etag='"v1"', stop_at=None, stall=False, ranges=True):
    """A server of a file: with Range and If-Range unless told otherwise."""

    def reply(handler, server):
        asked = handler.headers.get("Range") if ranges else None
        matches = handler.headers.get("If-Range") in (None, etag)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and matches else 0
        if start >= len(content):
            answer(handler, 416, b"", Content_Range=f"bytes */{len(content)}")
            return
        body = content[start:]
        spread = f"bytes {start}-{len(content) - 1}/{len(content)}" if start else None
        sent = body if stop_at is None else body[: max(stop_at - start, 0)]
        status = 206 if start else 200
        headers = {"Content_Length": len(body), "Content_Range": spread, "ETag": etag}
        answer(handler, status, sent, **headers)
        if stall:
            handler.wfile.flush()
            server.stop.wait(10)

    return reply


def fails(status):
    return lambda handler, server: answer(handler, status, b"no\nsuch <b>luck</b>")


def hangs_up(handler, server):
    handler.connection.close()


def moved(target):
    return lambda handler, server: answer(handler, 302, b"", Location=target)


def slow(handler, server):
    """In four pieces, so that downloads overlap."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    for start in range(0, len(CONTENT), 200_000):
        handler.wfile.write(CONTENT[start : start + 200_000])
        time.sleep(0.05)
