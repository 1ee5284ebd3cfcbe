"""The members of the loop that other parts of the supervisor use. Only type checkers import this module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from celeriac.worker.supervisor.command import Command
from celeriac.worker.supervisor.memory_limit import MemoryLimit
from celeriac.worker.supervisor.scratch import ScratchFolders


class Loop(Protocol):
    """The parts of the supervisor that a command uses."""

    null: int
    """A descriptor of /dev/null."""

    leaders: dict[int, Command]
    """Running commands by process id."""

    closing: set[Command]
    """Commands that have ended, but have processes left in their group."""

    waiting: set[Command]
    """Commands that have not started, because the system is out of descriptors, processes or memory."""

    environment: dict[bytes, bytes]
    """The variables that each command gets."""

    @property
    def is_shutting_down(self) -> bool: ...
    @property
    def is_paused(self) -> bool: ...
    def reap(self) -> None: ...
    def watch(self, descriptor: int, callback: Callable[[], None]) -> None: ...
    def unwatch(self, descriptor: int) -> None: ...
    def call_at(self, when: float, callback: Callable[[], None]) -> None: ...
    def has_lease(self) -> bool: ...
    def report_shortage(self, error: Exception) -> None: ...
    def run_beside(self, work: Callable[[], None], then: Callable[[], None]) -> None: ...
    def memory_limit(self, command: Command, size: int) -> MemoryLimit: ...
    def scratch_folders(self) -> ScratchFolders: ...
    def signal_orphans(self, task_id: str, number: int) -> None: ...
