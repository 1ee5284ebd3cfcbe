"""The connections of a server: bounded in number, and in the time that a client may take to send a request.

Anybody who reaches the port can connect and say nothing, without a token. The process may be a worker or a service,
which needs its descriptors for its work.

    connection ─► too many? ─► close the one that has waited longest without a request; without such a one, the new one
    request    ─► slower than `MIN_RATE`, after `REQUEST_TIMEOUT`? ─► close
"""

from __future__ import annotations

import asyncio
import time

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT = 20.0  # seconds until the request of a new connection must be there
MIN_RATE = 500.0  # bytes per second that a larger request must have on top of that


class BoundedConnection(H11Protocol):
    """One connection of a server with a page."""

    most = 500
    """The number of connections at a time."""

    _began = 0.0
    """When the request under way, or the connection, began."""

    _received = 0
    """The bytes of the request under way."""

    _timer: asyncio.TimerHandle | None = None

    @property
    def is_silent(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._make_room()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._expect_request()
        self._received += len(data)
        super().data_received(data)
        if not self.is_silent and not self.cycle.more_body:
            self._stop_waiting()

    def _make_room(self) -> None:
        """Close one connection."""
        others = [each for each in self.connections if isinstance(each, BoundedConnection) and each is not self]
        oldest = min((each for each in others if each.is_silent), key=lambda each: each._began, default=self)
        self.connections.discard(oldest)  # it would count until the loop has closed it
        oldest.transport.abort()

    def _expect_request(self) -> None:
        self._began, self._received = time.monotonic(), 0
        self._timer = self.loop.call_later(REQUEST_TIMEOUT, self._check_progress)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_progress(self) -> None:
        """Close the connection if its client is too slow, and not this server."""
        rest = self._began + REQUEST_TIMEOUT + self._received / MIN_RATE - time.monotonic()
        if rest <= 0 and not self.flow.read_paused:
            self._timer = None
            self.transport.abort()
            return
        self._timer = self.loop.call_later(max(rest, 1.0), self._check_progress)


class ProbeConnection(BoundedConnection):
    """One connection of a server without a page: those who ask for its health and its metrics are few."""

    most = 64
