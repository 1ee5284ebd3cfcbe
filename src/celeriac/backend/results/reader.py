"""The part that all result readers share.

changed ◄─ ChangeFeeds, and the ids that an outage left unread
read    ─► Fetcher ─► Store.fetch, in batches, up to the deadline
forget  ─► ResultCleaner ─► Store.delete
wait    ◄─ Wakeup ◄─ ChangeFeeds, `wake`, late replies
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from celeriac.backend.results.change_feed import ChangeFeed, ChangeSource
from celeriac.backend.results.cleaner import ResultCleaner
from celeriac.backend.results.fetcher import Fetcher, FetchReply, InlineFetcher, ThreadedFetcher
from celeriac.broker.wakeup import Wakeup
from celeriac.executor.circuit_breaker import CircuitBreaker
from celeriac.executor.interfaces import Unreadable
from celeriac.log_lines import logger_for
from celeriac.task.result import Result

if TYPE_CHECKING:
    from celeriac.executor.output_reader import OutputReader

logger = logger_for(__name__)

FIRST_RETRY_DELAY = 0.2  # seconds until an unavailable backend is called again; doubled after each failure in a row
MAX_RETRY_DELAY = 5.0  # seconds


class Store(Protocol):
    """One kind of result backend. Several threads call it. A call may block, and may raise any error of its client."""

    batch_size: int
    """The maximum number of ids in one call."""

    def fetch(self, ids: Sequence[str]) -> Mapping[str, Result | Unreadable]: ...
    def delete(self, ids: Sequence[str]) -> None: ...
    def close(self) -> None: ...


class BackendResults:
    """A `ResultReader`. Close it, or use it as a context manager: closing also makes the remaining deletions."""

    def __init__(
        self, store: Store, *, timeout: float, concurrency: int = 1, sources: Iterable[ChangeSource | None] = ()
    ) -> None:
        """`timeout`, in seconds, bounds one `read`. `concurrency` is the number of calls at once. With 0 the
        caller's thread makes the calls. Each of the `sources` gets a change feed; None is left out.
        """
        self._store, self._timeout, self._batch_size = store, timeout, store.batch_size
        self._wakeup = Wakeup()
        self._change_feeds = [
            ChangeFeed(source, notify=self._wakeup.notify) for source in sources if source is not None
        ]
        self._fetcher: Fetcher = (
            ThreadedFetcher(store.fetch, count=concurrency, on_late=self._wakeup.notify)
            if concurrency
            else InlineFetcher(store.fetch)
        )
        self._cleaner = ResultCleaner(store.delete, batch_size=store.batch_size)
        self._breaker = CircuitBreaker("the result backend", first_delay=FIRST_RETRY_DELAY, max_delay=MAX_RETRY_DELAY)
        self._hinted: SimpleQueue[Collection[str]] = SimpleQueue()
        self._unread: set[str] = set()
        self._late: dict[str, Result | Unreadable] = {}
        self.answered = True
        self.outputs: OutputReader | None = None
        """Brings the output of commands beside their results."""

    @property
    def pushes(self) -> bool:
        return any(feed.is_complete for feed in self._change_feeds)

    def changed(self) -> Collection[str]:
        ids: set[str] = set().union(*(feed.take() for feed in self._change_feeds))
        while not self._hinted.empty():
            ids |= set(self._hinted.get())
        for reply in self._fetcher.take_late():
            self._take(reply, self._late)
        ids |= self._late.keys()
        if self._breaker.allows(time.monotonic()):
            ids |= self._unread
            self._unread = set()
        return ids

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        results, self._late = self._late, {}
        unread = set(ids) - results.keys()
        if unread and self._breaker.allows(time.monotonic()):
            unread -= self._fetch(unread, results)
        self._unread |= unread - self._fetcher.pending_ids  # the reply for the pending ids will be late
        self.answered = not unread
        return results

    def forget(self, ids: Collection[str]) -> None:
        self._cleaner.add(ids)

    def wait(self, timeout: float) -> None:
        if self._unread or self._late:
            timeout = min(timeout, self._breaker.retry_at - time.monotonic())
        self._wakeup.wait(timeout)

    def wake(self) -> None:
        """End a `wait`. May be called from a signal handler or another thread."""
        self._wakeup.notify()

    def hint(self, ids: Collection[str]) -> None:
        """Have `changed` return these ids. May be called from another thread."""
        self._hinted.put(ids)
        self._wakeup.notify()

    def close(self) -> None:
        """Make the remaining deletions, then close the connections. Wait for an unavailable server no longer than one
        read may take.
        """
        until = time.monotonic() + self._timeout
        for feed in self._change_feeds:
            feed.close()
        self._cleaner.close(until)
        self._fetcher.close(until)
        self._store.close()
        self._wakeup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _fetch(self, ids: set[str], results: dict[str, Result | Unreadable]) -> set[str]:
        """Fetch results and add them to `results`. Return the ids for which the backend replied."""
        timed_out = TimeoutError(f"no reply in {self._timeout:g} s")
        if self._fetcher.is_stuck:
            self._record_failure(timed_out)
            return set()
        wanted = sorted(ids - self._fetcher.pending_ids)
        batches = [wanted[n : n + self._batch_size] for n in range(0, len(wanted), self._batch_size)]
        ids_with_reply: set[str] = set()
        failed = False
        with closing(self._fetcher.fetch(batches, time.monotonic() + self._timeout)) as replies:
            for reply in replies:
                if self._take(reply, results):
                    ids_with_reply.update(reply.request.ids)
                else:
                    failed = True
                    break
        if wanted and not ids_with_reply and not failed:
            self._record_failure(timed_out)
        return ids_with_reply

    def _take(self, reply: FetchReply, results: dict[str, Result | Unreadable]) -> bool:
        """Add the results of a reply to `results`. Return whether the call succeeded."""
        if isinstance(reply.outcome, Exception):
            self._unread.update(reply.request.ids)
            self._record_failure(reply.outcome)
            return False
        if line := self._breaker.record_success(time.monotonic()):
            logger.warning(line)
        results.update(reply.outcome)
        return True

    def _record_failure(self, error: Exception) -> None:
        if line := self._breaker.record_failure(time.monotonic(), error):
            logger.warning(line)
            logger.debug("traceback of that error", exc_info=error)
