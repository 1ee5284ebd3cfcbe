"""End commands that use more memory than they may.

    every second: /proc ─► the memory of each command, with all its processes ─► above its limit: TERM, its grace, KILL

Pages that processes share count for each of them. So before a command is ended, they are counted again, each page once.
A command that grows beyond `KILL_FACTOR` times its limit gets no more grace.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from celeriac.worker.supervisor.messages import StopReason
from celeriac.worker.supervisor.processes import processes_of

TYPE_CHECKING = False

if TYPE_CHECKING:
    from celeriac.worker.supervisor.command import Command
    from celeriac.worker.supervisor.interfaces import Loop

INTERVAL = 1.0  # seconds between two looks
KILL_FACTOR = 2.0
KIB = 1024


class MemoryWatch:
    """Looks at the commands of one supervisor that have a limit."""

    def __init__(self, supervisor: Loop) -> None:
        self._supervisor = supervisor
        self._commands: dict[Command, int] = {}

    def add(self, command: Command, limit: int) -> None:
        """Watch a command that has just started. `limit` is in bytes."""
        if not self._commands:
            self._supervisor.call_at(time.monotonic() + INTERVAL, self._look)
        self._commands[command] = limit

    def _look(self) -> None:
        self._commands = {
            command: limit
            for command, limit in self._commands.items()
            if command.status is None and not command.is_finished
        }
        if not self._commands:
            return
        self._supervisor.call_at(time.monotonic() + INTERVAL, self._look)  # first: an error must not end the watch
        try:
            pids = processes_of({command.pid: command.id for command in self._commands if command.pid is not None})
        except OSError as error:
            self._supervisor.report_shortage(error)
            return
        for command, limit in self._commands.items():
            self._check(command, limit, pids.get(command.pid or 0, {}))

    def _check(self, command: Command, limit: int, sizes: Mapping[int, int]) -> None:
        used = sum(sizes.values())
        if used > limit and len(sizes) > 1:
            used = sum(own_size(pid, size) for pid, size in sizes.items())
        command.peak_memory = max(used, command.peak_memory or 0)
        if used > limit:
            command.stop(StopReason.MEMORY)
        if used > KILL_FACTOR * limit:
            command.kill()


def own_size(pid: int, resident: int) -> int:
    """Return the bytes of a process, with its share of the pages that it shares; `resident` if that is not known."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) * KIB for line in file if line.startswith(b"Pss:"))
    except (OSError, StopIteration):
        return resident
