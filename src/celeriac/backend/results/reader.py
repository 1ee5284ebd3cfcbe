"""What is the same for every result backend.

changed ◄─ Hints, and what an outage kept from being read
read    ─► Asking ─► Store.fetch, in chunks, up to the deadline
forget  ─► Forgetter ─► Store.delete
wait    ◄─ Bell ◄─ Hints, `wake`, answers that come late
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol, Self

from celeriac.backend.results.bell import Wakeup
from celeriac.backend.results.change_feed import ChangeFeed, ChangeSource
from celeriac.backend.results.cleaner import ResultCleaner
from celeriac.backend.results.fetcher import FetchReply, InlineFetcher, ThreadedFetcher
from celeriac.backend.results.outage import Outage
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result


class Store(Protocol):
    """One kind of result backend. Called from several threads; may block, and may raise whatever its client does."""

    chunk: int
    """How many ids one call may have."""

    def fetch(self, ids: Sequence[str]) -> Mapping[str, Result | Unreadable]: ...
    def delete(self, ids: Sequence[str]) -> None: ...
    def close(self) -> None: ...


class BackendResults:
    """A `ResultReader`. Close it, or use it as a context manager: what is still to be deleted then is."""

    def __init__(
        self, store: Store, *, timeout: float, concurrency: int = 1, source: ChangeSource | None = None
    ) -> None:
        """`timeout`, in seconds, bounds one `read`. `concurrency` is how many ask at once; 0: the caller's thread."""
        self._store, self._timeout, self._chunk = store, timeout, store.chunk
        self._bell = Wakeup()
        self._hints = ChangeFeed(source, ring=self._bell.notify) if source is not None else None
        self._asking = (
            ThreadedFetcher(store.fetch, count=concurrency, on_late=self._bell.notify)
            if concurrency
            else InlineFetcher(store.fetch)
        )
        self._forgetter = ResultCleaner(store.delete, chunk=store.chunk)
        self._outage = Outage()
        self._hinted: SimpleQueue[Collection[str]] = SimpleQueue()
        self._unread: set[str] = set()
        self._late: dict[str, Result | Unreadable] = {}
        self.answered = True

    @property
    def pushes(self) -> bool:
        return self._hints is not None and self._hints.complete

    def changed(self) -> Collection[str]:
        ids = self._hints.take() if self._hints is not None else set()
        while not self._hinted.empty():
            ids |= set(self._hinted.get())
        for answer in self._asking.late():
            self._take(answer, self._late)
        ids |= self._late.keys()
        if not self._outage.paused:
            ids |= self._unread
            self._unread = set()
        return ids

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        results, self._late = self._late, {}
        waiting = set(ids) - results.keys()
        if waiting and not self._outage.paused:
            waiting -= self._ask(waiting, results)
        self._unread |= waiting - self._asking.asked  # of those, the answer comes late
        self.answered = not waiting
        return results

    def forget(self, ids: Collection[str]) -> None:
        self._forgetter.add(ids)

    def wait(self, timeout: float) -> None:
        if self._unread or self._late:
            timeout = min(timeout, self._outage.resume_at - time.monotonic())
        self._bell.wait(timeout)

    def wake(self) -> None:
        """End a `wait`. May be called from a signal handler or another thread."""
        self._bell.notify()

    def hint(self, ids: Collection[str]) -> None:
        """These have moved. May be called from another thread."""
        self._hinted.put(ids)
        self._bell.notify()

    def close(self) -> None:
        """Delete what is still to be deleted, then let the connections go. A server that is away is given the timeout
        of one read."""
        until = time.monotonic() + self._timeout
        if self._hints is not None:
            self._hints.close()
        self._forgetter.close(until)
        self._asking.close(until)
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _ask(self, ids: set[str], results: dict[str, Result | Unreadable]) -> set[str]:
        """Ask, add what is answered to `results`, and say which ids were dealt with."""
        silence = TimeoutError(f"no answer in {self._timeout:g} s")
        if self._asking.stuck:
            self._outage.failed(silence)
            return set()
        wanted = sorted(ids - self._asking.asked)
        chunks = [wanted[n : n + self._chunk] for n in range(0, len(wanted), self._chunk)]
        done: set[str] = set()
        failed = False
        with closing(self._asking.ask(chunks, time.monotonic() + self._timeout)) as answers:
            for answer in answers:
                if self._take(answer, results):
                    done.update(answer.question.ids)
                else:
                    failed = True
                    break
        if wanted and not done and not failed:
            self._outage.failed(silence)
        return done

    def _take(self, answer: FetchReply, results: dict[str, Result | Unreadable]) -> bool:
        if isinstance(answer.said, Exception):
            self._unread.update(answer.question.ids)
            self._outage.failed(answer.said)
            return False
        self._outage.answered()
        results.update(answer.said)
        return True
