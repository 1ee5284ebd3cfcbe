"""The worker's side: its settings are the first line of standard input, and further lines or its end let it end."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Any

from celeriac.errors import InvalidConfig

MAX_SIZE = 1_000_000  # bytes of the line with the settings
STDIN = 0


def read_options() -> dict[str, Any]:
    """Return the settings in the first line of standard input. Raises `InvalidConfig`."""
    line = bytearray()
    while len(line) < MAX_SIZE and not line.endswith(b"\n") and (data := os.read(STDIN, 1)):  # no byte of the next line
        line += data
    try:
        options = json.loads(line)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise InvalidConfig("--stdin", "the first line is no object of JSON", "use --ssh, which writes it")
    return options


def follow() -> None:
    """Send this process TERM for each further line, and at the end of standard input if there was none."""
    threading.Thread(target=obey, name="celeriac-stdin", daemon=True).start()


def obey() -> None:
    """Read to the end of standard input. A buffered reader would be locked when the process exits."""
    lines = 0
    while data := os.read(STDIN, MAX_SIZE):
        for _ in range(data.count(b"\n")):
            lines += 1
            os.kill(os.getpid(), signal.SIGTERM)
    if lines == 0:
        os.kill(os.getpid(), signal.SIGTERM)
