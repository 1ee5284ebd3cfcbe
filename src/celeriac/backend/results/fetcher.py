"""Asks a store that may not answer.

    read ─► ask ─► questions ─► threads, each with a client of its own ─► fetch
         ◄─ what has come by the deadline ◄─ answers ◄─┘

No client library keeps a deadline in every case (a frozen PostgreSQL, a frozen Sentinel): a thread may wait for ever,
the caller does not. What comes after the deadline is not lost: it is given with the next call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol, TypeAlias

from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result

Results: TypeAlias = Mapping[str, Result | Unreadable]
Fetch: TypeAlias = Callable[[Sequence[str]], Results]


@dataclass(frozen=True, slots=True, eq=False)
class FetchRequest:
    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class FetchReply:
    question: FetchRequest
    said: Results | Exception


class Fetcher(Protocol):
    def ask(self, chunks: Sequence[Sequence[str]], until: float) -> Generator[FetchReply, None, None]:
        """Answers as they come, until all have or the monotonic clock says `until`; late ones of earlier calls too."""
        ...

    def late(self) -> Iterator[FetchReply]:
        """Those that came since the last call."""
        ...

    @property
    def stuck(self) -> bool:
        """Whether nobody is free to ask."""
        ...

    @property
    def asked(self) -> set[str]:
        """Ids whose answer is still awaited."""
        ...

    def close(self, until: float) -> None:
        """End the threads, and wait for that at most until the monotonic clock says `until`."""
        ...


class ThreadedFetcher:
    """Up to `count` threads ask, so that the caller can stop waiting."""

    def __init__(self, fetch: Fetch, *, count: int, on_late: Callable[[], None]) -> None:
        """`on_late` is called from a thread when an answer comes that nobody waits for any more."""
        self._fetch, self._count, self._on_late = fetch, count, on_late
        self._questions: SimpleQueue[FetchRequest | None] = SimpleQueue()
        self._answers: SimpleQueue[FetchReply] = SimpleQueue()
        self._out: set[FetchRequest] = set()
        self._threads: list[threading.Thread] = []
        self._awaited = False

    @property
    def stuck(self) -> bool:
        return len(self._out) >= self._count

    @property
    def asked(self) -> set[str]:
        return {task_id for question in self._out for task_id in question.ids}

    def ask(self, chunks: Sequence[Sequence[str]], until: float) -> Generator[FetchReply, None, None]:
        mine = {FetchRequest(ids) for ids in chunks}
        self._awaited = True
        self._put(mine)
        try:
            while mine & self._out:
                try:
                    answer = self._answers.get(timeout=max(0.0, until - time.monotonic()))
                except Empty:
                    break
                self._out.discard(answer.question)
                yield answer
        finally:
            self._awaited = False
            self._withdraw()
        yield from self.late()

    def late(self) -> Iterator[FetchReply]:
        while True:
            try:
                answer = self._answers.get_nowait()
            except Empty:
                return
            self._out.discard(answer.question)
            yield answer

    def close(self, until: float) -> None:
        self._withdraw()
        for _ in self._threads:
            self._questions.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _put(self, questions: set[FetchRequest]) -> None:
        self._out |= questions
        for question in questions:
            self._questions.put(question)
        while len(self._threads) < min(self._count, len(self._out)):
            thread = threading.Thread(target=self._work, name="celeriac-results", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _withdraw(self) -> None:
        """Take back what no thread has begun with."""
        while True:
            try:
                question = self._questions.get_nowait()
            except Empty:
                return
            if question is not None:
                self._out.discard(question)

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            self._answers.put(answer_to(question, self._fetch))
            if not self._awaited:
                self._on_late()


class InlineFetcher:
    """The caller's own thread asks: for a backend whose answers come to the thread that sent the task."""

    stuck = False

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self.asked: set[str] = set()

    def ask(self, chunks: Sequence[Sequence[str]], until: float) -> Generator[FetchReply, None, None]:
        for ids in chunks:
            if time.monotonic() >= until:
                return
            yield answer_to(FetchRequest(ids), self._fetch)

    def late(self) -> Iterator[FetchReply]:
        return iter(())

    def close(self, until: float) -> None:
        """Nothing to end."""


def answer_to(question: FetchRequest, fetch: Fetch) -> FetchReply:
    try:
        return FetchReply(question, fetch(question.ids))
    except Exception as error:  # noqa: BLE001 - each client has errors of its own; the reader says what went wrong
        return FetchReply(question, error)
