"""Measure the output of commands on workers elsewhere, shown in order with tags, beside GNU parallel on this machine.

Each job writes 10 MB. What is shown goes to a pipe whose reader only hashes it, and is compared with the truth.
`CELERIAC_BENCH_OUTPUT_JOBS` sets the number of jobs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.crew import Place, Worker, crew
from bench.player import OURS, ROOT
from bench.table import Row, at_least, at_most

JOBS = int(os.environ.get("CELERIAC_BENCH_OUTPUT_JOBS", "100"))
QUICK_JOBS = 20
LINE = b"x" * 99 + b"\n"
SIZE = 10_000_000  # bytes of each job
WORKERS = 2
QUEUE = "default"
READ_SIZE = 1024 * 1024
LEAST_RATIO = 0.5
MOST_MEMORY = 300.0  # MB of each process


@dataclass(frozen=True, slots=True)
class Shown:
    """The output of a run."""

    seconds: float
    digest: str
    size: int
    memory: float
    """MB of its process, at most."""


def in_order(place: Place, rounds: int) -> list[Row]:
    number = JOBS if rounds > 1 else min(JOBS, QUICK_JOBS)
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as name, crew(place, QUEUE, WORKERS, 1) as workers:
        folder = Path(name)
        data = folder / "data"
        data.write_bytes(LINE * (SIZE // len(LINE)))
        truth = digest_of(number)
        given = ["--broker", place.broker, "--backend", place.backend, "--ledger", str(folder / "ledger.db")]
        ours = [OURS, "-m", "celeriac", "run", "-q", *given, "--tag", "--keep-order"]
        ours += ["-t", f"cat {data}; : {{}}", "--key", "{}", ":::", *map(str, range(number))]
        theirs = [
            "parallel",
            f"-j{WORKERS}",
            "--tag",
            "--keep-order",
            f"cat {data}; :",
            ":::",
            *map(str, range(number)),
        ]
        has_parallel = shutil.which("parallel") is not None
        pairs = [(show(theirs, folder) if has_parallel else None, show(ours, folder)) for _ in range(rounds)]
        memory = max(*(each.memory for _, each in pairs), *map(memory_of, workers))
    exact = all(each.digest == truth for pair in pairs for each in pair if each is not None)
    what = f"{number:,} jobs on {WORKERS} workers, 10 MB of output each, `--tag --keep-order`, {place.name}"
    mine = number * SIZE / statistics.median(each.seconds for _, each in pairs) / 1e6
    rows = [
        Row(f"{what}: every byte as it was written", "yes" if exact else "NO", "", "", "yes", float(exact)),
        Row("the same: memory of any process", f"{memory:,.0f} MB", "", "", "300 MB", at_most(memory, MOST_MEMORY)),
    ]
    first = f"{what}, against GNU parallel on this machine"
    if not has_parallel:
        return [Row(first, f"{mine:,.0f} MB/s", "NOT INSTALLED", "", f"{LEAST_RATIO:g}x", None), *rows]
    ratios = [other.seconds / each.seconds for other, each in pairs if other is not None]
    ratio = statistics.median(ratios)
    rival = number * SIZE / statistics.median(other.seconds for other, _ in pairs if other is not None) / 1e6
    told = f"{ratio:.2f}x ({', '.join(f'{each:.2f}' for each in ratios)})"
    bar = at_least(ratio, LEAST_RATIO)
    return [Row(first, f"{mine:,.0f} MB/s", f"{rival:,.0f} MB/s", told, f"{LEAST_RATIO:g}x", bar), *rows]


def digest_of(number: int) -> str:
    """Return the digest of all that is to be shown."""
    digest = hashlib.sha256()
    for key in range(number):
        digest.update((b"%d\t" % key + LINE) * (SIZE // len(LINE)))
    return digest.hexdigest()


def show(command: Sequence[str], folder: Path) -> Shown:
    """Run a command, and read what it shows."""
    digest, size, began = hashlib.sha256(), 0, time.monotonic()
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": f"{ROOT}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        while part := process.stdout.read(READ_SIZE):
            digest.update(part)
            size += len(part)
        seconds = time.monotonic() - began
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return Shown(seconds, digest.hexdigest(), size, usage.ru_maxrss / 1e3)


def memory_of(worker: Worker) -> float:
    """Return the most memory that a worker or its supervisor had, in MB."""
    process = psutil.Process(worker.process.pid)
    return max(peak_of(each.pid) for each in (process, *process.children()))


def peak_of(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 0.0 if found is None else int(found[1]) / 1e3
