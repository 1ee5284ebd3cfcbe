"""Decode claims and leases, one at a time. Any client of the store may have written them.

A lease that is malformed in part keeps its heartbeats: `LeaseRecord.lease` is None then, and the worker can still be
declared dead. One that is malformed altogether is left out, and its worker is one without a lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import astuple

from celeriac.backend.claims.claim import LEASE_KEPT, Claim, Lease, LeaseRecord, LeaseState
from celeriac.log_lines import logger_for
from celeriac.task.task import is_unicode

logger = logger_for(__name__)

MAX_LEASE_SIZE = 4 * 2**20  # bytes: the ids of some 100,000 messages that a worker has received
MAX_SLOTS = 1_000_000
MAX_QUEUES = 10_000
MAX_NAME = 1_000  # characters in the name of a worker, a host or a queue
MAX_NUMBER = 2**63 - 1  # the largest integer of Redis and of a database
MAX_SHOWN = 80  # characters of a malformed value in a log line
MAX_LOGGED = 1_000  # malformed values that are remembered, so that each is logged once

LEASE = msgspec.json.Decoder(Lease)
STATES = {state.value: state for state in LeaseState}
LEASE_FIELDS = ("content", "beat", "standing")
"""The fields of a lease on Redis."""


class MalformedLog:
    """Logs each malformed value once, although every poll meets it again."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def record(self, name: str, problem: object) -> None:
        """Log a malformed value. `name` tells it from others."""
        shown = short(name)
        if shown not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(shown)
            logger.warning("%s is malformed, and is ignored: %s", shown, short(str(problem)))


class LeaseDecoder:
    """Decodes all leases of a store at each poll, and those that have not changed since the poll before only once."""

    def __init__(self, malformed: MalformedLog) -> None:
        self._malformed = malformed
        self._decoded: dict[str, tuple[Sequence[Any], LeaseRecord]] = {}
        """The stored values of each holder, and what they mean."""

    def decode(self, stored: Iterable[tuple[str, Sequence[Any]]]) -> dict[str, LeaseRecord]:
        """Return the leases by holder, from their stored content, heartbeat count and state. Log malformed ones.

        A lease that has not changed is the same object as before. Several threads may call this.
        """
        before, decoded = self._decoded, {}
        for holder, values in stored:
            known = before.get(holder)
            if known is not None and known[0] == values:
                decoded[holder] = known
                continue
            try:
                decoded[holder] = (values, decode_lease(holder, *values))
            except ValueError as error:
                self._malformed.record(f"the lease {holder}", error)
        self._decoded = decoded
        return {holder: record for holder, (_, record) in decoded.items()}


def decode_lease(holder: str, content: Any, heartbeat_count: Any, state: Any) -> LeaseRecord:
    """Return the stored lease. Raise `ValueError` if nothing of it can be used."""
    count = number_of(heartbeat_count)
    lease_state = STATES.get(text_of(state))
    if lease_state is None:
        raise ValueError(f"no state of a lease: {text_of(state)}")
    return LeaseRecord(None if content is None else decode_content(holder, content), count, lease_state)


def age_of_lease(remaining: int) -> float:
    """Return the seconds since a lease was renewed on Redis, which keeps it for `remaining` milliseconds more."""
    return max(0.0, LEASE_KEPT - remaining / 1000)


def decode_content(holder: str, content: Any) -> Lease | None:
    """Return the worker's report; None if it is malformed, or another worker's."""
    if not isinstance(content, bytes | str) or len(content) > MAX_LEASE_SIZE:
        return None
    try:
        lease = LEASE.decode(content)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    queues = (*lease.queues, *lease.paused_queues)
    if not all(len(name) <= MAX_NAME and name.isprintable() for name in (lease.name, lease.host, *queues)):
        return None
    if lease.resources is not None and not all(0 <= amount <= MAX_NUMBER for amount in astuple(lease.resources)):
        return None
    has_limits = 0 <= lease.slots <= MAX_SLOTS and len(queues) <= MAX_QUEUES and 0 <= lease.number <= MAX_NUMBER
    return lease if has_limits and lease.holder == holder else None


def decode_claim(task_id: str, token: Any, cancelled: Any, fenced: Any, holder: Any) -> Claim:
    """Return the stored claim. The token of a malformed claim is 0."""
    try:
        number = number_of(token or 0)
    except ValueError:
        number = 0
    return Claim(task_id, text_of(holder), number, bool(cancelled), bool(fenced))


def text_of(value: Any) -> str:
    """Return text. Bytes that are not UTF-8 become lone surrogates, as in the names of files."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def bytes_of(text: str) -> bytes:
    """Return the bytes of which `text_of` made this text."""
    return text.encode(errors="surrogateescape")


def number_of(value: Any) -> int:
    """Return a whole number that is not negative. Raise `ValueError` for anything else."""
    if isinstance(value, bytes | str) and len(value) > len(str(MAX_NUMBER)):
        raise ValueError("not a number")
    if not isinstance(value, bytes | str | int):
        raise ValueError(f"not a number: {type(value).__name__}")  # noqa: TRY004 - it is a value of the store
    number = int(value)
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"out of range: {number}")
    return number


def storable(lease: Lease) -> Lease:
    """Return the lease without the ids that cannot be stored. No executor has them, but a message may."""
    return msgspec.structs.replace(lease, running=storable_ids(lease.running), held=storable_ids(lease.held))


def storable_ids(ids: Iterable[Any]) -> tuple[str, ...]:
    return tuple(task_id for task_id in ids if isinstance(task_id, str) and is_unicode(task_id))


def printable(name: str) -> str:
    """Return a name for a log line: as it is, or shortened and escaped if a line cannot show it."""
    return name if len(name) <= MAX_SHOWN and name.isprintable() else short(name)


def short(text: str) -> str:
    return ascii(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")
