"""Run a web application in a thread beside the work of this process.

If the server fails, the process goes on without it: the error is logged, and the server begins again on its socket.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from celeriac.surviving_loop import SurvivingLoop
from celeriac.web.connections import BoundedConnection
from celeriac.web.poller import Poller

THREAD = "celeriac-web"
CLOSE_TIMEOUT = 3.0  # seconds for the thread to end
DRAIN_TIMEOUT = 1  # seconds for open requests to end
IDLE_TIMEOUT = 30  # seconds until a connection without a request is closed


class WebServer:
    """A server on a socket that listens. Use it as a context manager, or call `start` and `close`."""

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        poller: Poller,
        connection: type[BoundedConnection] = BoundedConnection,
    ) -> None:
        """Own the socket and the poller: `close` closes them."""
        self._app, self._socket, self._poller, self._connection = app, listening, poller, connection
        self._has_ended = threading.Event()
        os.register_at_fork(after_in_child=listening.close)  # or a child would keep the port in use
        self._server: uvicorn.Server | None = None
        self._loop = SurvivingLoop(THREAD, self._run_round, wait=self._has_ended.wait)
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # strangers send malformed requests; the gate logs bugs

    def start(self) -> None:
        self._poller.start()
        self._loop.start()

    def close(self) -> None:
        """Stop serving. Later calls do nothing."""
        self._has_ended.set()
        self._poller.close()
        if (server := self._server) is not None:
            server.should_exit = True
        if self._loop.is_alive:
            self._loop.join(CLOSE_TIMEOUT)
        self._socket.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _run_round(self) -> bool:
        if self._has_ended.is_set():
            return False
        self._serve()
        return not self._has_ended.is_set()

    def _serve(self) -> None:
        """Serve until `close`."""
        config = uvicorn.Config(
            self._app,
            http=self._connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # a client could claim to be another one
            server_header=False,
            date_header=True,
            timeout_keep_alive=IDLE_TIMEOUT,
            timeout_graceful_shutdown=DRAIN_TIMEOUT,
        )
        self._server = server = uvicorn.Server(config)
        if not self._has_ended.is_set():
            asyncio.run(server.serve(sockets=[self._socket.dup()]))  # the server closes what it is given
