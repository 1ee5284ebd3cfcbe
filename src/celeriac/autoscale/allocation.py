"""An allocation of a cluster's scheduler, and what such a scheduler must be able to do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from celeriac.errors import CeleriacError


@dataclass(frozen=True, slots=True)
class Allocation:
    """One allocation that has not ended."""

    id: str
    is_running: bool
    """False while it is pending."""


class SchedulerError(CeleriacError):
    """A program of the scheduler failed. Its text is one line."""


class Scheduler(Protocol):
    """The scheduler of a cluster, as seen by one name of jobs. Each method raises `SchedulerError`."""

    @property
    def programs(self) -> Sequence[str]:
        """The programs that it runs."""
        ...

    def submit_command(self) -> Sequence[str]:
        """Return the command that submits one allocation. It reads the script from standard input."""
        ...

    def script(self) -> str:
        """Return the script of each allocation."""
        ...

    def submit(self) -> str:
        """Submit one allocation. Return its id."""
        ...

    def allocations(self) -> list[Allocation]:
        """Return the allocations that have not ended."""
        ...

    def cancel(self, ids: Collection[str]) -> None:
        """Cancel pending allocations."""
        ...
