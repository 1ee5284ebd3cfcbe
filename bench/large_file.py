"""Measure runs of files with a million lines: how fast they are read and checked, how soon a command starts, also after
`--resume`, how soon an interrupt ends the run, and how much memory it needs."""

from __future__ import annotations

import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.table import Row, at_least, at_most
from celeriac.runs.job_file import read_whole

LINES = 1_000_000
LIMIT = 2.0  # seconds
LEAST_RATE = 100_000  # lines a second
MOST_MEMORY = 1024.0  # MiB
COMMAND = "date +%s.%N >> starts"


class Layout(NamedTuple):
    """The lines of a file."""

    what: str
    suffix: str
    lines: tuple[str, ...]
    """They take turns. {n} is the number of the line, {before} that of the line before."""

    header: str = ""


LAYOUTS = (
    Layout("text", "txt", (f"{COMMAND} # {{n}}",)),
    Layout("JSON with keys", "jsonl", (f'{{{{"key": "k{{n}}", "command": "{COMMAND}"}}}}',)),
    Layout(
        "CSV with keys and priorities", "csv", (f"k{{n}},1,{COMMAND}", f"k{{n}},2,{COMMAND}"), "key,priority,command"
    ),
    Layout(
        "JSON, each second of which needs the one before",
        "jsonl",
        (
            f'{{{{"key": "k{{n}}", "command": "{COMMAND}", "retries": 1}}}}',
            f'{{{{"key": "k{{n}}", "command": "{COMMAND}", "needs": ["k{{before}}"]}}}}',
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The costs of one run."""

    start: float
    """Seconds until the first command has started, like `resumed`."""

    resumed: float
    end: float
    """Seconds from an interrupt until the run has ended."""

    memory: float
    """MiB of the process of the run, at most."""


def start_and_interrupt(rounds: int) -> list[Row]:
    """Measure each layout with a ledger; in a quick run only the two that most files have."""
    return [row for layout in (LAYOUTS if rounds > 1 else LAYOUTS[:2]) for row in rows(layout, rounds)]


def rows(layout: Layout, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
        file = write_file(layout, Path(folder))
        rate = statistics.median(read(file) for _ in range(rounds))
        measured = [measure(file) for _ in range(rounds)]
    what = f"`celeriac run`, {LINES:,} lines of {layout.what}, with a ledger"
    memory = max(each.memory for each in measured)
    return [
        Row(
            f"read and check {LINES:,} lines of {layout.what}",
            f"{rate:,.0f}/s",
            "",
            "",
            f"{LEAST_RATE:,}/s",
            at_least(rate, LEAST_RATE),
        ),
        seconds_row(f"{what}: until the first command has started", [each.start for each in measured], LIMIT),
        seconds_row("the same: from Ctrl-C, a second later, to the end", [each.end for each in measured], LIMIT),
        seconds_row(
            "the same: after that, `--resume` until a command has started", [each.resumed for each in measured]
        ),
        Row(
            "the same: memory of the process at most",
            f"{memory:,.0f} MiB",
            "",
            "",
            f"{MOST_MEMORY:,.0f} MiB",
            at_most(memory, MOST_MEMORY),
        ),
    ]


def write_file(layout: Layout, folder: Path) -> Path:
    file = folder / f"jobs.{layout.suffix}"
    with file.open("w") as out:
        if layout.header:
            out.write(f"{layout.header}\n")
        for n in range(LINES):
            out.write(layout.lines[n % len(layout.lines)].format(n=n, before=n - 1) + "\n")
    return file


def read(file: Path) -> float:
    """Return how many lines are read and checked in a second."""
    began = time.monotonic()
    assert len(read_whole(file)) == LINES
    return LINES / (time.monotonic() - began)


def measure(file: Path) -> Measured:
    for old in file.parent.glob("ledger.db*"):  # a folder with its other files is beside it
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    start, end, memory = run(file)
    resumed, _, memory_resumed = run(file, "--resume")
    return Measured(start=start, end=end, resumed=resumed, memory=max(memory, memory_resumed))


def run(file: Path, *options: str) -> tuple[float, float, float]:
    """Return the seconds until a command has started and from an interrupt to the end, and MiB of memory."""
    starts = file.with_name("starts")
    starts.unlink(missing_ok=True)
    command = [sys.executable, "-m", "celeriac", "run", "-q", "-j2", "--local", "--ledger", "ledger.db", file.name]
    began = time.time()
    with subprocess.Popen([*command, *options], cwd=file.parent, stderr=subprocess.DEVNULL) as process:
        while not (starts.exists() and "\n" in starts.read_text()):
            time.sleep(0.005)
        time.sleep(1.0)
        peak = peak_memory(process.pid)
        process.send_signal(signal.SIGINT)
        interrupted = time.time()
        process.wait()
    return float(starts.read_text().split()[0]) - began, time.time() - interrupted, peak


def peak_memory(pid: int) -> float:
    """Return the most memory that a process has had so far, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the system does not tell the memory of a process")


def seconds_row(what: str, seconds: list[float], limit: float | None = None) -> Row:
    middle = statistics.median(seconds)
    scatter = f"{min(seconds):.2f} to {max(seconds):.2f} s in {len(seconds)} rounds"
    if limit is None:
        return Row(what, f"{middle:.2f} s", "", scatter, "", None)
    return Row(what, f"{middle:.2f} s", "", scatter, f"{limit:g} s", at_most(middle, limit))
