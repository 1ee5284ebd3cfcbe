"""End commands that use more memory than they may.

    every second: /proc ─► the memory of each command, with all its processes ─► above its limit: TERM, its grace, KILL

Pages that processes share count for each of them. So before a command is ended, they are counted again, each page once.
A command that grows beyond `KILL_FACTOR` times its limit gets no more grace.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping

from celeriac.worker.supervisor import orphans
from celeriac.worker.supervisor.messages import StopReason

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
        pids = processes_of({command.pid: command.id for command in self._commands if command.pid is not None})
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


def processes_of(commands: Mapping[int, str]) -> dict[int, dict[int, int]]:
    """Return the resident bytes of each process of each command. Commands are given by process id, with the id of their
    task.

    A process belongs to a command by its group, by its parent, or, if both have changed, by its environment.
    """
    found = dict(read_processes())
    owners: dict[int, int | None] = {}

    def owner_of(pid: int) -> int | None:
        if pid not in owners:
            owners[pid] = None  # a circle: a process id was reused between two reads
            parent, group, _ = found[pid]
            if group in commands:
                owners[pid] = group
            elif parent in found and parent != os.getpid():
                owners[pid] = owner_of(parent)
            elif parent == os.getpid():
                owners[pid] = command_of_task(orphans.task_of(pid), commands)
        return owners[pid]

    sizes: dict[int, dict[int, int]] = {}
    for pid, (_, _, size) in found.items():
        if (owner := owner_of(pid)) is not None:
            sizes.setdefault(owner, {})[pid] = size
    return sizes


def command_of_task(task_id: str | None, commands: Mapping[int, str]) -> int | None:
    return next((pid for pid, each in commands.items() if each == task_id), None)


def read_processes() -> Iterable[tuple[int, tuple[int, int, int]]]:
    """Yield each process with its parent, its group and its resident bytes."""
    if not sys.platform.startswith("linux"):
        yield from read_by_psutil()
        return
    page = os.sysconf("SC_PAGE_SIZE")
    for name in orphans.listed_processes():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rsplit(b") ", 1)[1].split()
            except OSError:
                continue  # the process has just ended
            yield int(name), (int(fields[1]), int(fields[2]), int(fields[21]) * page)


def read_by_psutil() -> Iterable[tuple[int, tuple[int, int, int]]]:
    import psutil  # where there is no /proc

    for process in psutil.process_iter():
        try:
            yield process.pid, (process.ppid(), os.getpgid(process.pid), process.memory_info().rss)
        except (psutil.Error, OSError):
            continue


def own_size(pid: int, resident: int) -> int:
    """Return the bytes of a process, with its share of the pages that it shares; `resident` if that is not known."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) * KIB for line in file if line.startswith(b"Pss:"))
    except (OSError, StopIteration):
        return resident
