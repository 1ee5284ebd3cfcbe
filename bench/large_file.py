"""Measure how soon the first command of a large file starts, and how soon an interrupt ends the run."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.table import Row, at_most

LINES = 200_000
LIMIT = 2.0  # seconds
COMMAND = "date +%s.%N >> starts"
LAYOUTS = {"txt": f"{COMMAND} # {{}}\n", "jsonl": f'{{{{"key": "k{{}}", "command": "{COMMAND}"}}}}\n'}


def start_and_interrupt(rounds: int) -> list[Row]:
    return [row for suffix in LAYOUTS for ledger in ("none", "ledger.db") for row in rows(suffix, ledger, rounds)]


def rows(suffix: str, ledger: str, rounds: int) -> list[Row]:
    measured = [measure(suffix, ledger) for _ in range(rounds)]
    what = (
        f"`celeriac run`, {LINES:,} lines of .{suffix}, {'without a ledger' if ledger == 'none' else 'with a ledger'}"
    )
    return [
        seconds_row(f"{what}: until the first command has started", [start for start, _ in measured]),
        seconds_row("the same: from Ctrl-C, a second later, to the end", [end for _, end in measured]),
    ]


def measure(suffix: str, ledger: str) -> tuple[float, float]:
    """Return the seconds until the first command has started, and from an interrupt until the run has ended."""
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
        file, starts = Path(folder) / f"jobs.{suffix}", Path(folder) / "starts"
        file.write_text("".join(LAYOUTS[suffix].format(number) for number in range(LINES)))
        command = [sys.executable, "-m", "celeriac", "run", "-q", "-j2", "--local", "--ledger", ledger, file.name]
        began = time.time()
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as run:
            while not (starts.exists() and "\n" in starts.read_text()):
                time.sleep(0.005)
            time.sleep(1.0)
            run.send_signal(signal.SIGINT)
            interrupted = time.time()
            run.wait()
        return float(starts.read_text().split()[0]) - began, time.time() - interrupted


def seconds_row(what: str, seconds: list[float]) -> Row:
    middle = statistics.median(seconds)
    scatter = f"{min(seconds):.2f} to {max(seconds):.2f} s in {len(seconds)} rounds"
    return Row(what, f"{middle:.2f} s", "", scatter, f"{LIMIT:g} s", at_most(middle, LIMIT))
