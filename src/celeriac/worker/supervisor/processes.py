"""Find all processes of a command, also those which left its process group while their parent lives."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping

from celeriac.shortages import is_shortage
from celeriac.worker.supervisor import orphans


def processes_of(commands: Mapping[int, str]) -> dict[int, dict[int, int]]:
    """Return the resident bytes of each process of each command. Commands are given by process id, with the id of their
    task.

    A process belongs to a command by its group, by its parent, or, if both have changed, by its environment.
    Raises `OSError` if the system is out of descriptors or memory.
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
            except OSError as error:
                if is_shortage(error):
                    raise
                continue  # the process has just ended
            yield int(name), (int(fields[1]), int(fields[2]), int(fields[21]) * page)


def read_by_psutil() -> Iterable[tuple[int, tuple[int, int, int]]]:
    import psutil  # where there is no /proc

    for process in psutil.process_iter():
        try:
            yield process.pid, (process.ppid(), os.getpgid(process.pid), process.memory_info().rss)
        except (psutil.Error, OSError):
            continue
