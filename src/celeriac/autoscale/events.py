"""The events that an autoscaler reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class EventKind(StrEnum):
    """The kind of an event."""

    SUBMITTED = "submitted"
    CANCELLED = "cancelled"
    FAILED = "failed"
    """A submission failed, or an allocation ended before its worker was there."""

    UNAVAILABLE = "unavailable"
    """The broker, the leases or the scheduler cannot be read."""

    AVAILABLE = "available"
    STATE = "state"
    """The numbers have changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The allocations and the tasks at one moment."""

    pending: int
    running: int
    waiting: int | None
    """The tasks that wait; None while that is unknown."""

    unserved: int | None
    """Those of them that no free slot takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscaleEvent:
    """One event."""

    at: float
    """Seconds since the epoch."""

    kind: EventKind
    words: str
    allocations: Sequence[str] = ()
    numbers: Numbers | None = None


Report: TypeAlias = Callable[[AutoscaleEvent], None]
