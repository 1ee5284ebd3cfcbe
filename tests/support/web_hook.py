"""A web server that keeps what is posted to it, and answers as the test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from typing import Any, NamedTuple

from tests.support.cli_runner import WAIT_TIMEOUT, until


class Posted(NamedTuple):
    """One request."""

    target: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class WebHook:
    """The server. `url` ends with a secret."""

    def __init__(self, port: int, *, scheme: str = "http") -> None:
        self.url = f"{scheme}://localhost:{port}/hook/SECRET?token=HIDDEN"
        self.shown = f"{scheme}://localhost:{port}/******"
        self.posted: list[Posted] = []
        self.status, self.headers = 200, dict[str, str]()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def wait_for(self, number: int) -> list[Posted]:
        """Return the requests, once there are so many."""
        until(lambda: len(self.posted) >= number, f"{number} requests")
        return self.posted


@contextmanager
def web_hook(tls: SSLContext | None = None) -> Iterator[WebHook]:
    """Serve until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.posted.append(Posted(self.path, dict(self.headers), json.loads(body)))
            hook.may_answer.wait(WAIT_TIMEOUT)
            self.send_response(hook.status)
            for name, value in hook.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            raise AssertionError("nothing asks for a page")

        def log_message(self, format: str, *arguments: object) -> None:
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        hook = WebHook(server.server_port, scheme="http" if tls is None else "https")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hook
        finally:
            hook.may_answer.set()
            server.shutdown()
            thread.join()
