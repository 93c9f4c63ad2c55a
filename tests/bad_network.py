"""A server on this machine that fails as networks do."""

import http.server
import threading

import numpy as np

CONTENT = np.random.default_rng(0).bytes(700_001)


class Server:
    """Answers request i with `plan[i]`, the last one again and again."""

    def __init__(self, *plan):
        self.plan, self.requests = plan, []
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


def whole(content=CONTENT, stop_at=None):
    """A server of a file, which breaks off after `stop_at` bytes."""
    return lambda handler, server: answer(
        handler, 200, content[:stop_at], Content_Length=len(content)
    )


def fails(status):
    return lambda handler, server: answer(handler, status, b"no\nsuch <b>luck</b>")


def hangs_up(handler, server):
    handler.connection.close()
