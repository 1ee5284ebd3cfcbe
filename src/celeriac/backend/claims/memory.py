"""Claims and leases within one process: for the local cluster, and for tests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from typing import Any, Self

from msgspec import Struct
from msgspec.structs import replace

from celeriac.backend.claims.claim import (
    AlreadyClaimed,
    Claim,
    ClaimCancelled,
    ClaimReply,
    DeclaredDead,
    Granted,
    Lease,
    LeaseRecord,
    LeaseState,
    Renewed,
    Superseded,
)


class Entry(Struct):
    holder: str | None = None
    delivery: str | None = None
    token: int = 0
    cancelled: bool = False
    fenced: bool = False
    released: bool = False
    """Whether a worker has ever released it."""


class MemoryClaims:
    errors: tuple[type[Exception], ...] = ()

    def __init__(self, on_cancelled: Callable[[str], object] = lambda _: None) -> None:
        """`on_cancelled` is called with the id of a task that was cancelled before it was claimed: its result is
        REVOKED."""
        self._entries: dict[str, Entry] = {}
        self._leases: dict[str, LeaseRecord] = {}
        self._tokens = count(1)
        self._on_cancelled = on_cancelled

    def claim(
        self,
        task_id: str,
        *,
        holder: str,
        delivery: str,
        started_info: Mapping[str, Any] | None = None,
        request: Any = None,
    ) -> ClaimReply:
        entry = self._entries.setdefault(task_id, Entry())
        record = self._leases.get(holder)
        if entry.fenced or (record is not None and record.state is LeaseState.DEAD):
            return Superseded()
        if entry.holder is not None:
            is_same = (entry.holder, entry.delivery) == (holder, delivery)
            return Granted(entry.token) if is_same else AlreadyClaimed(entry.holder)
        if entry.cancelled:
            return ClaimCancelled()
        entry.holder, entry.delivery, entry.token = holder, delivery, next(self._tokens)
        return Granted(entry.token)

    def release(self, task_id: str, *, holder: str) -> bool:
        entry = self._entries.get(task_id, Entry())
        if entry.holder not in (None, holder) or entry.fenced:
            return False
        entry.released |= entry.holder is not None
        entry.holder = entry.delivery = None
        return not entry.cancelled

    def renew(self, lease: Lease) -> Renewed | DeclaredDead:
        before = self._leases.get(lease.holder, LeaseRecord(None, 0, LeaseState.LIVE))
        if before.state is LeaseState.DEAD:
            return DeclaredDead()
        self._leases[lease.holder] = LeaseRecord(lease, before.heartbeat_count + 1, LeaseState.LIVE)
        entries = {task_id: self._entries[task_id] for task_id in lease.running if task_id in self._entries}
        fenced = {i for i, entry in entries.items() if entry.fenced or entry.holder not in (None, lease.holder)}
        return Renewed(
            frozenset(i for i, entry in entries.items() if entry.cancelled and i not in fenced), frozenset(fenced)
        )

    def end_lease(self, holder: str) -> None:
        record = self._leases.get(holder)
        if record is not None and record.state is LeaseState.LIVE:
            self._leases[holder] = replace(record, state=LeaseState.GONE)

    def leases(self) -> Mapping[str, LeaseRecord]:
        return dict(self._leases)

    def heartbeat_ages(self, holders: Sequence[str]) -> Mapping[str, float]:
        return {}  # its workers live and die with this process

    def check_writable(self) -> None:
        """Memory can always be written."""

    def read(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        return {
            task_id: Claim(task_id, entry.holder, entry.token, entry.cancelled, entry.fenced)
            for task_id in ids
            if (entry := self._entries.get(task_id)) is not None and entry.holder is not None
        }

    def declare_dead(self, holder: str, heartbeat_count: int | None) -> bool:
        record = self._leases.get(holder)
        if record is None and heartbeat_count is not None:
            return False
        if record is not None and record.state is LeaseState.LIVE and record.heartbeat_count != heartbeat_count:
            return False
        self._leases[holder] = LeaseRecord(
            record.lease if record else None, (record.heartbeat_count if record else 0) + 1, LeaseState.DEAD
        )
        return True

    def fence(self, claims: Sequence[Claim]) -> Collection[str]:
        fenced = []
        for claim in claims:
            entry = self._entries.get(claim.id)
            if entry is not None and entry.holder == claim.holder:
                entry.fenced = True
                fenced.append(claim.id)
        return fenced

    def cancel(self, ids: Sequence[str], *, unless_started: bool = False) -> Collection[str]:
        cancelled = []
        for task_id in ids:
            entry = self._entries.setdefault(task_id, Entry())
            if entry.holder is not None and unless_started:
                continue
            if entry.holder is None and (entry.released or not entry.cancelled):
                cancelled.append(task_id)
                self._on_cancelled(task_id)
            entry.cancelled = True
        return cancelled

    def knows(self, task_id: str) -> bool:
        """Return whether the task was claimed or cancelled, and not forgotten since."""
        return task_id in self._entries

    def forget(self, ids: Collection[str]) -> None:
        """Delete the entries of tasks for which no message is left."""
        for task_id in ids:
            self._entries.pop(task_id, None)

    def check_rights(self) -> None:
        pass

    def anew(self) -> Self:
        return self

    def cut(self) -> None:
        pass

    def close(self) -> None:
        """There is no connection to close."""
