"""Decide from the workers' leases which workers are suspected and which are dead.

    leases, time ─► FailureDetector ─► suspected: no heartbeat for `SUSPECT_AFTER`
                                   └─► expired: none for `LEASE_DURATION`; to be declared dead in the store

A renewed lease shows another count of heartbeats, and another number of the worker's own. So silence is measured by
this process's own clock, and only while its polls succeed: after a gap between polls, and after polls that failed,
every worker gets a full lease again. A poll also fails if a worker is silent and the store refuses writes.

There is no I/O here, and no thread; `LeaseMonitor` has both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from msgspec.structs import replace as with_state

from celeriac.backend.claims.claim import Lease, LeaseRecord, LeaseState
from celeriac.config.lease import LEASE_DURATION

CHECK_WRITES_AFTER = 3.0  # seconds without a heartbeat; longer than the interval between two renewals
MAX_POLL_GAP = 5.0  # seconds; after a gap this long between polls, restart every silence timer
RECENT = 15.0  # seconds that the name of a gone worker is kept: longer than code that pings workers keeps it
SUSPECT_AFTER = (
    4.5  # seconds without a heartbeat; then its received tasks count as missing, because it may never start them
)


@dataclass(frozen=True, slots=True)
class WatchedLease:
    record: LeaseRecord
    heartbeat_at: float
    """Time when a new heartbeat was last seen, or when the silence timers were restarted."""

    has_renewed: bool = False
    """Whether this process has seen a heartbeat. If not, the worker may have died long before."""

    @property
    def is_live(self) -> bool:
        return self.record.state is LeaseState.LIVE


@dataclass(frozen=True, slots=True)
class Expired:
    """A worker to declare dead."""

    holder: str
    heartbeat_count: int | None
    """None for a worker without a lease."""

    name: str
    silence: float
    """Seconds without a heartbeat."""


def is_other_renewal(first: LeaseRecord, second: LeaseRecord) -> bool:
    return (first.heartbeat_count, first.number) != (second.heartbeat_count, second.number)


class FailureDetector:
    """All times are seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._watched: dict[str, WatchedLease] = {}
        self._missing: dict[str, float] = {}
        """Holders of claims that have no lease, and the time since when it is missing."""

        self._polled_at: float | None = None
        self.active: list[tuple[Lease, bool]] = []
        """Leases of workers that take tasks, as of the last poll; each with whether a renewal was seen. If
        none was seen, the worker may have died before this process began to watch."""

    # — results of polls —

    def update(self, leases: Mapping[str, LeaseRecord], now: float) -> bool:
        """Take the leases of one poll. Return whether a worker has gone, or is newly suspected."""
        polled_at = self._polled_at
        is_restart = polled_at is None or now - polled_at > MAX_POLL_GAP
        suspected_before = set() if polled_at is None else self._silent(polled_at, SUSPECT_AFTER)
        before, self._watched = self._watched, {}
        for holder, record in leases.items():
            previous = before.get(holder) or WatchedLease(record, now)
            if record is previous.record and not is_restart:
                self._watched[holder] = previous
                continue
            # Who declares a worker dead raises its count, too.
            is_renewed = record.state is LeaseState.LIVE and is_other_renewal(previous.record, record)
            heartbeat_at = now if is_renewed or is_restart else previous.heartbeat_at
            self._watched[holder] = WatchedLease(record, heartbeat_at, previous.has_renewed or is_renewed)
        self._missing = {
            holder: now if is_restart else since
            for holder, since in self._missing.items()
            if holder not in self._watched
        }
        self._polled_at = now
        self.active = [
            (lease, watched.has_renewed)
            for lease, watched in self._known()
            if not lease.draining and now - watched.heartbeat_at < SUSPECT_AFTER and watched.is_live
        ]
        return self._has_gone_since(before) or bool(self._silent(now, SUSPECT_AFTER) - suspected_before)

    def poll_failed(self) -> None:
        """Take note that the store is unavailable. The next poll restarts every silence timer."""
        self._polled_at = None

    def needs_write_check(self, now: float) -> bool:
        """Return whether a worker has been silent for so long that the store may be refusing its renewals.

        A store that refuses writes can still be read. Then call `poll_failed`: otherwise every worker would be declared
        dead when the store accepts writes again, before it can renew.
        """
        is_missing = any(now - since >= CHECK_WRITES_AFTER for since in self._missing.values())
        return is_missing or bool(self._silent(now, CHECK_WRITES_AFTER))

    def expired(self, now: float) -> list[Expired]:
        """Return the workers that have been silent for `LEASE_DURATION`."""
        silent = [(holder, self._watched[holder]) for holder in sorted(self._silent(now, LEASE_DURATION))]
        return [
            Expired(
                holder,
                watched.record.heartbeat_count,
                watched.record.lease.name if watched.record.lease is not None else holder,
                now - watched.heartbeat_at,
            )
            for holder, watched in silent
        ] + [
            Expired(holder, None, holder, now - since)
            for holder, since in self._missing.items()
            if now - since >= LEASE_DURATION
        ]

    def record_dead(self, expired: Expired) -> None:
        """Take note that the store has declared a worker dead."""
        self._missing.pop(expired.holder, None)
        if (watched := self._watched.get(expired.holder)) is not None:
            self._watched[expired.holder] = replace(watched, record=with_state(watched.record, state=LeaseState.DEAD))

    # — queries of executors —

    @property
    def has_polled(self) -> bool:
        """Whether the last poll succeeded. If so, the leases here are at most some seconds old."""
        return self._polled_at is not None

    @property
    def knows_any(self) -> bool:
        """Whether any worker has a lease, or had one lately."""
        return bool(self._watched)

    def live(self) -> list[Lease]:
        """Return the leases of workers that may be alive."""
        return [lease for lease, watched in self._known() if watched.is_live]

    def live_records(self) -> dict[str, LeaseRecord]:
        """Return the records of these leases by holder."""
        return {lease.holder: watched.record for lease, watched in self._known() if watched.is_live}

    def suspected(self, now: float) -> list[Lease]:
        """Return the leases of workers that are dead, or may be: silent for `SUSPECT_AFTER`."""
        return [
            lease
            for lease, watched in self._known()
            if not watched.is_live or now - watched.heartbeat_at >= SUSPECT_AFTER
        ]

    def names(self, now: float) -> frozenset[str]:
        """Return the names of workers that have a lease, or had one in the last `RECENT` seconds."""
        return frozenset(
            lease.name for lease, watched in self._known() if watched.is_live or now - watched.heartbeat_at <= RECENT
        )

    def find(self, holder: str) -> Lease | None:
        watched = self._watched.get(holder)
        return watched.record.lease if watched is not None else None

    def silence_of(self, holder: str, now: float) -> float | None:
        """Return the seconds since a worker's last heartbeat; None for an unknown worker."""
        watched = self._watched.get(holder)
        return now - watched.heartbeat_at if watched is not None else None

    def is_dead(self, holder: str, now: float) -> bool:
        """Return whether the worker has lost its claims. One without a lease is dead only after `LEASE_DURATION`."""
        watched = self._watched.get(holder)
        if watched is not None:
            return not watched.is_live
        self._missing.setdefault(holder, now)
        return False

    def _known(self) -> list[tuple[Lease, WatchedLease]]:
        """Return all workers except those that were declared dead and never had a lease."""
        return [
            (watched.record.lease, watched) for watched in self._watched.values() if watched.record.lease is not None
        ]

    def _silent(self, now: float, seconds: float) -> set[str]:
        return {
            holder
            for holder, watched in self._watched.items()
            if now - watched.heartbeat_at >= seconds and watched.is_live
        }

    def _has_gone_since(self, before: Mapping[str, WatchedLease]) -> bool:
        return any(
            not watched.is_live and (holder not in before or before[holder].is_live)
            for holder, watched in self._watched.items()
        )
