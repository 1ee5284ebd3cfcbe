"""Processes that left the group of their command: found by their parent, told apart by their environment.

Linux gives a process that lost its parent to the nearest ancestor that asked for such: the supervisor. Elsewhere they
cannot be found, and only process groups are ended.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Container

from celeriac.worker.supervisor.command import TASK_ID_VARIABLE

MARK = TASK_ID_VARIABLE.encode() + b"="


def find(leaders: Container[int]) -> list[int]:
    """Living children of ours that we did not start."""
    if not sys.platform.startswith("linux"):
        return []
    me = str(os.getpid()).encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in leaders:
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rsplit(b") ", 1)[1].split(b" ", 2)[:2]
        except OSError:  # it has just ended
            continue
        if parent == me and state != b"Z":
            found.append(int(name))
    return found


def task_of(pid: int) -> str | None:
    """The task a process was started for; None if its environment does not tell."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return None
    return next((v[len(MARK) :].decode("utf-8", "replace") for v in variables if v.startswith(MARK)), None)


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # gone, or no longer ours to signal
        return
