"""Find processes that left the process group of their command.

On Linux, a process whose parent died becomes a child of the nearest ancestor that asked for such processes: the
supervisor. The environment of the process shows its task. On other systems orphans cannot be found, and only process
groups are ended.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Container

from celeriac.shortages import is_shortage
from celeriac.worker.supervisor.command import TASK_ID_VARIABLE

PREFIX = TASK_ID_VARIABLE.encode() + b"="


def find(leaders: Container[int]) -> list[int]:
    """Return the process ids of our living children, without `leaders`: the processes that we started ourselves.

    Raises `OSError` if the system is out of descriptors or memory."""
    if not sys.platform.startswith("linux") or not has_children():
        return []
    own_pid = str(os.getpid()).encode()
    pids = []
    for name in listed_children() or listed_processes():
        if not name.isdigit() or int(name) in leaders:
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rsplit(b") ", 1)[1].split(b" ", 2)[:2]
        except OSError as error:
            if is_shortage(error):
                raise
            continue  # the process has just ended
        if parent == own_pid and state != b"Z":
            pids.append(int(name))
    return pids


def has_children() -> bool:
    """Return whether this process has a child, also one that has ended. One call, where /proc takes milliseconds."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def listed_children() -> list[str]:
    """Return the process ids of all children; none if this kernel does not list them. It can only miss a child while
    another one is reaped, and no other thread reaps them."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def listed_processes() -> list[str]:
    """Return the names in /proc; none where it is missing, as in some containers: then orphans cannot be found."""
    try:
        return os.listdir("/proc")
    except FileNotFoundError:
        return []


def task_of(pid: int) -> str | None:
    """Return the id of the task for which a process was started; None if its environment does not contain one.

    Raises as `find` does."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError as error:
        if is_shortage(error):
            raise
        return None
    value = next((variable[len(PREFIX) :] for variable in variables if variable.startswith(PREFIX)), None)
    return None if value is None else value.decode("utf-8", "replace")


def group_of(pid: int) -> int | None:
    """Return the process group of a process; None if the process has ended."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def send(pid: int, number: int) -> None:
    """Send a signal to a process, if it still exists."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # the process has ended, or changed its user
        return
