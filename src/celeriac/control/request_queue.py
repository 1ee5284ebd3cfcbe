"""Between a desk's thread and the executor's: requests go one way, answers the other, and nobody waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from celeriac.executor.interfaces import PendingRequest
from celeriac.executor.requests import Reply, Request

T = TypeVar("T")


class RequestQueue:
    """The executor's `Desk`; what carries requests to it is a thread's business."""

    def __init__(self, *, wake: Callable[[], None], ring: Callable[[], None] = lambda: None) -> None:
        """`wake` ends the executor's `wait`; `ring` is called by its thread when there is an answer."""
        self._wake, self._ring = wake, ring
        self._requests: SimpleQueue[PendingRequest] = SimpleQueue()
        self._replies: SimpleQueue[tuple[PendingRequest, Reply]] = SimpleQueue()

    # — the executor's thread —

    def take_requests(self) -> list[PendingRequest]:
        return list(taken_from(self._requests))

    def reply(self, asked: PendingRequest, reply: Reply) -> None:
        self._replies.put((asked, reply))
        self._ring()

    # — the other thread —

    def put(self, request: Request, ticket: object) -> None:
        self._requests.put(PendingRequest(request, ticket))
        self._wake()

    def replies(self) -> list[tuple[PendingRequest, Reply]]:
        return list(taken_from(self._replies))


def taken_from(queue: SimpleQueue[T]) -> Iterator[T]:
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return
