"""Callbacks that a worker of the tests runs. They wait for a file, so that the test decides when they end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

MAX_WAIT = 60.0  # seconds


def wait(pid_file: str, go: str) -> None:
    """Write the process id to `pid_file`, and return when the file `go` exists."""
    Path(f"{pid_file}.part").write_text(str(os.getpid()))
    Path(f"{pid_file}.part").rename(pid_file)
    deadline = time.monotonic() + MAX_WAIT
    while not Path(go).exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def wait_ignoring_term(pid_file: str, go: str) -> None:
    """Do the same, but ignore TERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait(pid_file, go)
