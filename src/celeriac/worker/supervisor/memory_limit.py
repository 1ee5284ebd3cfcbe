"""The limits of memory of the commands of one supervisor: control groups where they can be made, else the watch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from celeriac.worker.supervisor.control_groups import ControlGroup, ControlGroups
from celeriac.worker.supervisor.memory_watch import MemoryWatch
from celeriac.worker.supervisor.messages import StopReason

REMOVE_TRIES = 60
REMOVE_DELAY = 0.5  # seconds between two tries
TYPE_CHECKING = False

if TYPE_CHECKING:
    from celeriac.worker.supervisor.command import Command
    from celeriac.worker.supervisor.interfaces import Loop


class MemoryLimits:
    """The watch and the control groups that all commands of a supervisor share."""

    def __init__(self, supervisor: Loop, mark: str) -> None:
        self.watch = MemoryWatch(supervisor)
        self.groups = ControlGroups(mark)

    def close(self) -> None:
        """Remove the groups that are left."""
        self.groups.close()


class MemoryLimit:
    """The limit of one command."""

    def __init__(self, limits: MemoryLimits, command: Command, size: int) -> None:
        """`size` is what the command may use, in bytes."""
        self._limits, self._command, self._size = limits, command, size
        self._group: ControlGroup | None = None
        self._tries_left = REMOVE_TRIES

    def prepare(self) -> Callable[[], None] | None:
        """Make a group. Return what the new process calls to enter it; None if there is none."""
        if self._group is None:  # the start of the command may be tried again
            self._group = self._limits.groups.make(self._size)
        return None if self._group is None else self._group.enter

    def on_start(self) -> None:
        """Watch the command, unless the kernel does."""
        if self._group is None:
            self._limits.watch.add(self._command, self._size)

    def on_exit(self, status: int) -> None:
        """Find out whether the command was killed for its use of memory."""
        command, group = self._command, self._group
        if group is not None:
            command.peak_memory = max(group.peak() or 0, command.peak_memory or 0)
        if command.stopped is not None or status == 0:
            return
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if group.had_kill() if group is not None else was_killed and (command.peak_memory or 0) > self._size:
            command.stopped = StopReason.MEMORY

    def close(self) -> None:
        """Remove the group, now or when the processes that have left their process group have been ended."""
        if self._group is not None and not self._group.remove() and self._tries_left > 0:
            self._tries_left -= 1
            self._command.supervisor.call_at(time.monotonic() + REMOVE_DELAY, self.close)
