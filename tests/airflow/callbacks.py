"""What a worker of the tests runs: these wait for a file, so that a test says when they end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

LONGEST = 60.0  # seconds


def wait(up: str, go: str) -> None:
    """Writes its process to the file `up`, and ends when the file `go` is there."""
    Path(f"{up}.part").write_text(str(os.getpid()))
    Path(f"{up}.part").rename(up)
    end = time.monotonic() + LONGEST
    while not Path(go).exists() and time.monotonic() < end:
        time.sleep(0.02)


def wait_deaf(up: str, go: str) -> None:
    """The same, and TERM is not heeded."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait(up, go)
