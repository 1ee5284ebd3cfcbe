"""Pass requests from a server's thread to the executor's thread, and replies back. No call blocks."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from celeriac.executor.interfaces import PendingRequest
from celeriac.executor.requests import Reply, Request

T = TypeVar("T")


class RequestQueue:
    """The executor's `ControlChannel`, for any kind of server."""

    def __init__(self, *, wake: Callable[[], None], on_reply: Callable[[], None] = lambda: None) -> None:
        """`wake` ends the executor's `wait`. The executor's thread calls `on_reply` after each reply."""
        self._wake, self._on_reply = wake, on_reply
        self._requests: SimpleQueue[PendingRequest] = SimpleQueue()
        self._replies: SimpleQueue[tuple[PendingRequest, Reply]] = SimpleQueue()

    # — the executor's thread —

    def take_requests(self) -> list[PendingRequest]:
        return take_all(self._requests)

    def reply(self, request: PendingRequest, reply: Reply) -> None:
        self._replies.put((request, reply))
        self._on_reply()

    # — the server's thread —

    def put(self, request: Request, reply_to: object) -> None:
        """Queue a request and wake the executor. `take_replies` returns `reply_to` with each reply to the request."""
        self._requests.put(PendingRequest(request, reply_to))
        self._wake()

    def take_replies(self) -> list[tuple[PendingRequest, Reply]]:
        """Return the replies since the last call, each with its request."""
        return take_all(self._replies)


def take_all(queue: SimpleQueue[T]) -> list[T]:
    taken: list[T] = []
    while True:
        try:
            taken.append(queue.get_nowait())
        except Empty:
            return taken
