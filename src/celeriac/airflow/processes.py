"""Signals to processes, and processes that end with their parent."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil
from billiard.util import set_pdeathsig


def send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Return whether a process runs: one that has ended, and that no parent has waited for, does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill_descendants(pid: int) -> bool:
    """Kill all descendants of a process. Return whether there were any."""
    try:
        descendants = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return False
    for process in descendants:
        send_signal(process.pid, signal.SIGKILL)
    return bool(descendants)


def end_with_parent() -> None:
    """Make the kernel send TERM to this process when its parent ends for any reason. Works only on Linux."""
    with contextlib.suppress(OSError):
        set_pdeathsig(signal.SIGTERM)  # billiard's default is KILL
