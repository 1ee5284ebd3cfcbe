"""Poll the workers' leases in a thread, and declare workers dead whose leases have expired.

store ─► leases ─► FailureDetector ─► a worker is silent ─► does the store accept writes?
                                  ├─► expired ─► store: declare_dead
                                  └─► has_news, on_news ─► the executor looks for lost tasks at once
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from celeriac.backend.claims.claim import Claims, Lease, LeaseRecord
from celeriac.backend.claims.failure_detector import Expired, FailureDetector
from celeriac.backend.claims.stored import printable
from celeriac.executor.circuit_breaker import CircuitBreaker, level_of
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_refusal, is_server_error
from celeriac.surviving_loop import SurvivingLoop

logger = logger_for(__name__)

POLL_INTERVAL = 1.0  # seconds between two polls
CLOSE_TIMEOUT = 3.0  # seconds to wait for a poll under way when closing


class LeaseMonitor:
    """Polls from its creation until `close`. Any thread may call its methods."""

    def __init__(self, claims: Claims, *, on_news: Callable[[], None], poll_interval: float = POLL_INTERVAL) -> None:
        """The polling thread calls `on_news` when a worker has gone, or may have."""
        self.claims, self._on_news, self._poll_interval = claims, on_news, poll_interval
        self._lock = threading.Lock()
        self._detector = FailureDetector()
        self._breaker, self._write_breaker = (
            CircuitBreaker(
                "the result backend",
                first_delay=poll_interval,
                effect=effect,
            )
            for effect in ("the leases cannot be read", "no worker can renew its lease")
        )
        self._has_news = False
        self.polls = 0
        """The number of polls so far, also of those that failed. In between, `active` and `names` stay the same."""

        self.died = 0
        """The number of workers that this process declared dead."""

        self._closed, self._first_poll = threading.Event(), threading.Event()
        self._thread = SurvivingLoop("celeriac-leases", self._run_round, wait=self._closed.wait)
        self._thread.start()

    @property
    def has_news(self) -> bool:
        """Whether a worker has gone, or may have, since the last `take_news`."""
        return self._has_news

    def take_news(self) -> None:
        self._has_news = False

    @property
    def has_polled(self) -> bool:
        """Whether the last poll succeeded. If so, the leases here are at most some seconds old."""
        return self._detector.has_polled

    def wait_for_poll(self, timeout: float) -> None:
        """Wait until the first poll has succeeded, at most `timeout` seconds."""
        self._first_poll.wait(timeout)

    @property
    def knows_any(self) -> bool:
        """Whether any worker has a lease, or had one lately."""
        return self._detector.knows_any

    @property
    def active(self) -> list[tuple[Lease, bool]]:
        """Leases of workers that take tasks, as of the last poll; each with whether a renewal was seen. If
        none was seen, the worker may have died before this process began to watch."""
        return self._detector.active

    def live(self) -> list[Lease]:
        """Return the leases of workers that may be alive."""
        with self._lock:
            return self._detector.live()

    def live_records(self) -> dict[str, LeaseRecord]:
        """Return the records of these leases by holder, as of the last poll, which may take long."""
        with self._lock:
            return self._detector.live_records()

    def names(self) -> frozenset[str]:
        """Return the names of workers that have a lease, or had one a moment ago."""
        with self._lock:
            return self._detector.names(time.monotonic())

    def suspected(self) -> list[Lease]:
        """Return the leases of workers that are dead, or silent for so long that they may be."""
        with self._lock:
            return self._detector.suspected(time.monotonic())

    def count_by_state(self) -> dict[str, int]:
        """Return how many workers are live, draining, paused and suspected, without those that were declared dead."""
        with self._lock:
            live, suspected = self._detector.live(), self._detector.suspected(time.monotonic())
        holders = {lease.holder for lease in suspected}
        states = ["suspected" if each.holder in holders else state_of(each) for each in live]
        return {state: states.count(state) for state in ("live", "draining", "paused", "suspected")}

    def find(self, holder: str) -> Lease | None:
        with self._lock:
            return self._detector.find(holder)

    def silence_of(self, holder: str) -> float | None:
        """Return the seconds since a worker's last heartbeat; None for an unknown worker."""
        with self._lock:
            return self._detector.silence_of(holder, time.monotonic())

    def is_dead(self, holder: str) -> bool:
        """Return whether the worker has lost its claims. A worker without a lease is found dead only later."""
        with self._lock:
            return self._detector.is_dead(holder, time.monotonic())

    def poll(self) -> None:
        """Poll once, as the thread does at each interval. Raise the errors of the claims' server."""
        leases = self.claims.leases()
        now = time.monotonic()
        with self._lock:
            has_news = self._detector.update(leases, now)
            needs_write_check = self._detector.needs_write_check(now)
        self.polls += 1
        self._first_poll.set()
        if line := self._breaker.record_success(now):
            logger.debug(line)
        if has_news:
            self._report_news()
        if (needs_write_check or self._write_breaker.is_open) and not self._can_be_written():
            with self._lock:
                self._detector.poll_failed()
            return
        with self._lock:
            expired = self._detector.expired(now)
        has_died = False
        try:
            for expired_lease in expired:
                with self._thread.survivor.guard(is_server_error):  # so that the others are declared dead
                    has_died |= self._declare_dead(expired_lease)
        finally:
            if has_died:  # once for all of them: each report begins the search for lost tasks anew
                self._report_news()

    def close(self) -> None:
        """End the thread. Do not wait for a store that does not reply."""
        self._closed.set()
        self._first_poll.set()
        self._thread.join(CLOSE_TIMEOUT)
        self.claims.close()

    def _run_round(self) -> bool:
        if self._closed.is_set():
            return False
        try:
            self.poll()
        except Exception as error:
            with self._lock:
                self._detector.poll_failed()
            self.polls += 1
            if not is_server_error(error):
                raise
            if line := self._breaker.record_failure(time.monotonic(), error):
                logger.log(level_of(error), line)
        self._closed.wait(self._poll_interval)
        return True

    def _can_be_written(self) -> bool:
        """Return whether the store accepts writes. Log a refusal once, because all other calls here only read."""
        try:
            self.claims.check_writable()
        except Exception as error:
            if not is_refusal(error):
                raise
            if line := self._write_breaker.record_failure(time.monotonic(), error):
                logger.warning(line)
            return False
        if line := self._write_breaker.record_success(time.monotonic()):
            logger.warning(line)
        return True

    def _declare_dead(self, expired: Expired) -> bool:
        if not self.claims.declare_dead(expired.holder, expired.heartbeat_count):
            return False
        with self._lock:
            self._detector.record_dead(expired)
        if expired.heartbeat_count is not None:
            name = printable(expired.name)
            self.died += 1
            logger.warning("worker %s sent no heartbeat for %.1f s: declared dead", name, expired.silence)
        return True

    def _report_news(self) -> None:
        self._has_news = True
        self._on_news()


def state_of(lease: Lease) -> str:
    """Return the state of a worker that is not suspected."""
    return "draining" if lease.draining else "paused" if lease.paused else "live"
