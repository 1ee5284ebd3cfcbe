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


def kill_descendants(pid: int) -> bool:
    """Return whether there was any process to kill."""
    try:
        descendants = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return False
    for process in descendants:
        send_signal(process.pid, signal.SIGKILL)
    return bool(descendants)


def end_with_parent() -> None:
    """Have the kernel send TERM to this process when its parent ends, in whatever way. Only Linux can."""
    with contextlib.suppress(OSError):
        set_pdeathsig(signal.SIGTERM)  # billiard's default is KILL
