"""A small HTTP server in the place of Airflow's API server: it refuses, hangs, starts tasks, or forwards to a real one.

A test sets `behaviour`; the next request follows it.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from airflow.sdk.api.datamodels._generated import DagRun

HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}
DAG_RUN: dict[str, Any] = {
    "dag_id": "dag",
    "run_id": "run",
    "logical_date": "2021-01-01T00:00:00Z",
    "start_date": "2021-01-01T00:00:00Z",
    "run_type": "manual",
    "run_after": "2021-01-01T00:00:00Z",
    "consumed_asset_events": [],
    "state": "running",
    "data_interval_start": None,
    "data_interval_end": None,
    "end_date": None,
    "partition_key": None,
}
RUN_CONTEXT = {
    "dag_run": {name: value for name, value in DAG_RUN.items() if name in DagRun.model_fields},
    "task_reschedule_count": 0,
    "max_tries": 0,
    "should_retry": False,
}
"""The answer that lets a task start, with the fields of this version of Airflow."""


class Behaviour(Enum):
    UNAVAILABLE = auto()
    """Answer 503."""

    HANG = auto()
    """Answer nothing until the behaviour changes."""

    NOT_FOUND = auto()
    FORBIDDEN = auto()
    CONFLICT = auto()
    """Answer that the task has the requested state already, as Airflow 3.1 and 3.2 do."""

    ENDED = auto()
    """Answer to a start that the task has succeeded."""

    CLEARED = auto()
    """Answer to a start that the task has no state."""

    START = auto()
    """Let every task start, and accept everything else."""

    FORWARD = auto()
    """Forward to the real server."""


class ApiServer:
    """The server. It runs in threads of this process."""

    def __init__(self, target: str | None = None, behaviour: Behaviour = Behaviour.NOT_FOUND) -> None:
        """`target` is the host and port of the real server."""
        self.behaviour, self.target = behaviour, target
        self.requests: list[tuple[str, str, Any]] = []
        """Method, path and JSON content of each request."""

        handler = type("BoundHandler", (Handler,), {"api_server": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/execution/"

    def contents(self, path_end: str) -> list[Any]:
        """Return the contents of the requests whose path ends so."""
        return [content for _, path, content in list(self.requests) if path.endswith(path_end)]

    def close(self) -> None:
        self.behaviour = Behaviour.NOT_FOUND
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api_server: ApiServer

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client has given up
            super().handle()

    def handle_request(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with suppress(ValueError):
            self.api_server.requests.append((self.command, self.path, json.loads(content) if content else None))
        while self.api_server.behaviour is Behaviour.HANG:
            time.sleep(0.02)
        match self.api_server.behaviour:
            case Behaviour.UNAVAILABLE:
                self._answer(503, b"unavailable", {"Content-Type": "text/plain"})
            case Behaviour.NOT_FOUND:
                self._answer_json(404, {"detail": {"reason": "not_found", "message": "Task Instance not found"}})
            case Behaviour.FORBIDDEN:
                self._answer_json(403, {"detail": "Invalid auth token"})
            case Behaviour.CONFLICT:
                state = (json.loads(content) if content else {}).get("state")
                self._answer_json(409, {"detail": {"reason": "invalid_state", "previous_state": state}})
            case Behaviour.ENDED | Behaviour.CLEARED as behaviour:
                state = "success" if behaviour is Behaviour.ENDED else None
                self._answer_json(409, {"detail": {"reason": "invalid_state", "previous_state": state}})
            case Behaviour.START:
                self._answer_json(200, RUN_CONTEXT if self.path.endswith("/run") else {})
            case Behaviour.FORWARD:
                self._forward(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_request  # noqa: N815

    def _forward(self, content: bytes) -> None:
        connection = http.client.HTTPConnection(str(self.api_server.target), timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
            connection.request(self.command, self.path, content or None, headers)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_HEADERS}
            self._answer(answer.status, answer.read(), kept)
        except OSError as error:
            self._answer(502, str(error).encode(), {"Content-Type": "text/plain"})
        finally:
            connection.close()

    def _answer_json(self, status: int, content: Any) -> None:
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        with suppress(OSError):  # the client has given up
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status not in (204, 304):
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD" and status not in (204, 304):
                self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def api_server(**options: Any) -> Iterator[ApiServer]:
    server = ApiServer(**options)
    try:
        yield server
    finally:
        server.close()
