"""Call a store that may not reply.

    read ─► fetch ─► requests ─► threads, each with its own client ─► store
         ◄─ replies by the deadline ◄─┘

No client library keeps its timeout in every case: a frozen PostgreSQL or a frozen Sentinel can hold a call for ever. So
a thread makes the call, and the caller stops waiting at the deadline. A late reply is not lost: the next call returns
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol, TypeAlias

from celeriac.executor.interfaces import Unreadable
from celeriac.surviving_loop import SurvivingLoop
from celeriac.task.result import Result

Results: TypeAlias = Mapping[str, Result | Unreadable]
Fetch: TypeAlias = Callable[[Sequence[str]], Results]


@dataclass(frozen=True, slots=True, eq=False)
class FetchRequest:
    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class FetchReply:
    request: FetchRequest
    outcome: Results | Exception


class Fetcher(Protocol):
    def fetch(self, batches: Sequence[Sequence[str]], until: float) -> Generator[FetchReply, None, None]:
        """Yield replies as they arrive, also late replies of earlier calls. Stop when all replies have arrived, or at
        `until` on the monotonic clock.
        """
        ...

    def take_late(self) -> Iterator[FetchReply]:
        """Yield the replies that arrived since the last call."""
        ...

    @property
    def is_stuck(self) -> bool:
        """Whether every thread still waits for a reply."""
        ...

    @property
    def pending_ids(self) -> set[str]:
        """Ids whose reply has not arrived yet."""
        ...

    def close(self, until: float) -> None:
        """End the threads. Wait for them at most until `until` on the monotonic clock."""
        ...


class ThreadedFetcher:
    """Up to `count` threads make the calls, so that the caller can stop waiting.

    The threads share one queue of requests. Requests that no thread has begun are taken back, and late replies are
    reported. `DeadlineThread` does none of this.
    """

    def __init__(self, fetch: Fetch, *, count: int, on_late: Callable[[], None]) -> None:
        """A thread calls `on_late` when a reply arrives after the deadline."""
        self._fetch, self._count, self._on_late = fetch, count, on_late
        self._requests: SimpleQueue[FetchRequest | None] = SimpleQueue()
        self._replies: SimpleQueue[FetchReply] = SimpleQueue()
        self._pending: set[FetchRequest] = set()
        self._threads: list[SurvivingLoop] = []
        self._is_waiting = False

    @property
    def is_stuck(self) -> bool:
        return len(self._pending) >= self._count

    @property
    def pending_ids(self) -> set[str]:
        return {task_id for request in self._pending for task_id in request.ids}

    def fetch(self, batches: Sequence[Sequence[str]], until: float) -> Generator[FetchReply, None, None]:
        requests = {FetchRequest(ids) for ids in batches}
        self._is_waiting = True
        self._submit(requests)
        try:
            while requests & self._pending:
                try:
                    reply = self._replies.get(timeout=max(0.0, until - time.monotonic()))
                except Empty:
                    break
                self._pending.discard(reply.request)
                yield reply
        finally:
            self._is_waiting = False
            self._drop_unstarted()
        yield from self.take_late()

    def take_late(self) -> Iterator[FetchReply]:
        while True:
            try:
                reply = self._replies.get_nowait()
            except Empty:
                return
            self._pending.discard(reply.request)
            yield reply

    def close(self, until: float) -> None:
        self._drop_unstarted()
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _submit(self, requests: set[FetchRequest]) -> None:
        self._pending |= requests
        for request in requests:
            self._requests.put(request)
        while len(self._threads) < min(self._count, len(self._pending)):
            thread = SurvivingLoop("celeriac-results", self._run_round)
            thread.start()
            self._threads.append(thread)

    def _drop_unstarted(self) -> None:
        """Take back the requests that no thread has begun."""
        while True:
            try:
                request = self._requests.get_nowait()
            except Empty:
                return
            if request is not None:
                self._pending.discard(request)

    def _run_round(self) -> bool:
        request = self._requests.get()
        if request is None:
            return False
        self._replies.put(call(self._fetch, request))
        if not self._is_waiting:
            self._on_late()
        return True


class InlineFetcher:
    """Makes the calls in the caller's thread, for a backend that sends results to the thread that sent the task."""

    is_stuck = False

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self.pending_ids: set[str] = set()

    def fetch(self, batches: Sequence[Sequence[str]], until: float) -> Generator[FetchReply, None, None]:
        for ids in batches:
            if time.monotonic() >= until:
                return
            yield call(self._fetch, FetchRequest(ids))

    def take_late(self) -> Iterator[FetchReply]:
        return iter(())

    def close(self, until: float) -> None:
        """There is no thread to end."""


def call(fetch: Fetch, request: FetchRequest) -> FetchReply:
    try:
        return FetchReply(request, fetch(request.ids))
    except Exception as error:  # noqa: BLE001 - each client has other errors; the reader logs them
        return FetchReply(request, error)
