"""Watches the leases of the workers: who lives, who has said goodbye, and who has been silent for too long.

A lease that is renewed shows a new beat. So silence is measured here, by this process's own clock, and only while the
store answers each look: of one that was away nobody could say anything, and everybody is given the full time anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from celeriac.backend.claims.claim import Claims, Lease, LeaseRecord, LeaseState
from celeriac.config.lease import LEASE_DURATION

logger = logging.getLogger(__name__)

POLL_INTERVAL = 1.0  # seconds between two looks
GAP = 5.0  # seconds between two looks after which nobody can be blamed for his silence: we were not looking
CLOSE_TIMEOUT = 3.0  # seconds for what is under way to end
RECENT = 15.0  # seconds; longer than anybody who asks workers themselves takes to forget one that has gone
SUSPECT_AFTER = 4.5  # seconds of silence from which on what a worker has not begun is not counted on


@dataclass(slots=True)
class WatchedLease:
    leased: LeaseRecord
    heard: float
    """When a new beat was last seen, in seconds of the monotonic clock."""

    has_renewed: bool = False
    """Whether one was, since this process looks on. Else it may be the lease of a worker that is long dead."""


class FailureDetector:
    """Looks from the first moment on, in a thread of its own, until `close`."""

    def __init__(self, claims: Claims, *, on_alarm: Callable[[], None]) -> None:
        """`on_alarm` is called by that thread when a worker has gone, or may have."""
        self.claims, self._on_alarm = claims, on_alarm
        self._lock = threading.Lock()
        self._watched: dict[str, WatchedLease] = {}
        self._missing: dict[str, float] = {}
        """Holders of claims without a lease, and since when they are missed."""

        self._at_work: list[tuple[Lease, bool]] = []
        self._last_look: float | None = None
        self._alarmed = False
        self._closed, self._first_look = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="celeriac-leases", daemon=True)
        self._thread.start()

    @property
    def has_news(self) -> bool:
        return self._alarmed

    def take_news(self) -> None:
        self._alarmed = False

    @property
    def has_polled(self) -> bool:
        """Whether what is said here is of the last seconds."""
        return self._last_look is not None

    def wait_for_poll(self, timeout: float) -> None:
        """Until the first look was answered, or for so many seconds."""
        self._first_look.wait(timeout)

    @property
    def knows_any(self) -> bool:
        """Whether any worker has, or lately had, a lease."""
        return bool(self._watched)

    def live(self) -> list[Lease]:
        """The leases of those that may be alive."""
        return [lease for lease, one in self._known() if one.leased.state is LeaseState.LIVE]

    @property
    def at_work(self) -> list[tuple[Lease, bool]]:
        """The leases of those that take tasks, as the last look that was answered has it; and of each whether it was
        seen to be renewed, or may be the last word of a worker that had died before."""
        return self._at_work

    def names(self) -> frozenset[str]:
        """Of the workers that have a lease, or had one a moment ago."""
        a_moment_ago = time.monotonic() - RECENT
        return frozenset(
            lease.name
            for lease, one in self._known()
            if one.leased.state is LeaseState.LIVE or one.heard >= a_moment_ago
        )

    def suspected(self) -> list[Lease]:
        """Of those that are dead, or silent for so long that they may be."""
        silent_since = time.monotonic() - SUSPECT_AFTER
        return [
            lease for lease, one in self._known() if one.leased.state is not LeaseState.LIVE or one.heard < silent_since
        ]

    def find(self, holder: str) -> Lease | None:
        with self._lock:
            watched = self._watched.get(holder)
        return watched.leased.lease if watched is not None else None

    def silence_of(self, holder: str) -> float | None:
        """Seconds since it was last heard."""
        with self._lock:
            watched = self._watched.get(holder)
        return time.monotonic() - watched.heard if watched is not None else None

    def is_dead(self, holder: str) -> bool:
        """Whether what it had claimed is nobody's. Of one that has no lease this is found out by and by."""
        with self._lock:
            watched = self._watched.get(holder)
            if watched is not None:
                return watched.leased.state is not LeaseState.LIVE
            self._missing.setdefault(holder, time.monotonic())
        return False

    def close(self) -> None:
        """A store that answers nothing is not waited for."""
        self._closed.set()
        self._first_look.set()
        self._thread.join(CLOSE_TIMEOUT)
        self.claims.close()

    def _known(self) -> list[tuple[Lease, WatchedLease]]:
        """Less those of whom there is a verdict alone."""
        with self._lock:
            return [(one.leased.lease, one) for one in self._watched.values() if one.leased.lease is not None]

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                if self._poll():
                    self._alarmed = True
                    self._on_alarm()
            except self.claims.errors as error:
                self._last_look = None
                logger.debug("nobody can say who is alive: %s", error)
            self._closed.wait(POLL_INTERVAL)

    def _poll(self) -> bool:
        """Whether somebody has gone, or may have, who had not at the last look."""
        leases = self.claims.leases()
        now = time.monotonic()
        was_blind = self._last_look is None or now - self._last_look > GAP
        silent_before = set() if was_blind else self._overdue(self._last_look or now, SUSPECT_AFTER)
        with self._lock:
            before, self._watched = self._watched, {}
            for holder, leased in leases.items():
                known = before.get(holder, WatchedLease(leased, now))
                is_new = known.leased.heartbeat_count != leased.heartbeat_count
                heard = now if is_new or was_blind else known.heard
                self._watched[holder] = WatchedLease(leased, heard, known.has_renewed or is_new)
            self._missing = {
                holder: now if was_blind else since
                for holder, since in self._missing.items()
                if holder not in self._watched
            }
            gone = {
                holder
                for holder, one in self._watched.items()
                if one.leased.state is not LeaseState.LIVE
                and (holder not in before or before[holder].leased.state is LeaseState.LIVE)
            }
        self._at_work = [
            (lease, one.has_renewed)
            for lease, one in self._known()
            if one.leased.state is LeaseState.LIVE and not lease.draining and now - one.heard < SUSPECT_AFTER
        ]
        self._last_look = now
        self._first_look.set()
        died = self._declare_dead(now)
        return bool(gone or died or self._overdue(now, SUSPECT_AFTER) - silent_before)

    def _overdue(self, now: float, seconds: float) -> set[str]:
        with self._lock:
            return {
                holder
                for holder, one in self._watched.items()
                if one.leased.state is LeaseState.LIVE and now - one.heard >= seconds
            }

    def _declare_dead(self, now: float) -> bool:
        died = False
        for holder in self._overdue(now, LEASE_DURATION):
            watched = self._watched[holder]
            if self.claims.declare_dead(holder, watched.leased.heartbeat_count):
                died = True
                watched.leased = LeaseRecord(watched.leased.lease, watched.leased.heartbeat_count + 1, LeaseState.DEAD)
                lease = watched.leased.lease
                name = lease.name if lease is not None else holder
                logger.warning("worker %s has said nothing for %.1f s: taken for dead", name, now - watched.heard)
        with self._lock:
            missing = [holder for holder, since in self._missing.items() if now - since >= LEASE_DURATION]
        for holder in missing:
            if self.claims.declare_dead(holder, None):
                died = True
                with self._lock:
                    del self._missing[holder]
        return died
