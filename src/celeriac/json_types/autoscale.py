"""The JSON output of autoscale."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET

from celeriac.json_types.base import MaybeNumber, MaybeText, Strict


class AutoscaleLine(Strict):
    """One line: an event, or the plan of --dry-run."""

    event: Literal["submitted", "cancelled", "failed", "unavailable", "available", "state", "stopped", "planned"]
    at: float
    words: str
    allocations: list[str]
    """The ids of the allocations that the event is about."""

    pending: int | None
    """The pending allocations at the last look; null before the first one."""

    running: int | None
    waiting: int | None
    """The tasks that wait; null while that is unknown."""

    unserved: int | None
    """Those of them that no free slot takes."""

    submit: MaybeNumber = UNSET
    cancel: MaybeNumber = UNSET
    command: MaybeText = UNSET
    """The command that would submit an allocation, with the script on its standard input."""

    script: MaybeText = UNSET
