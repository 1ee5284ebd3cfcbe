"""Measure the pages about a run of a million tasks: the first byte, the memory, and what more viewers cost."""

from __future__ import annotations

import http.client
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from tests.support.servers import free_port

from bench.remembering import MILLION, record
from bench.table import Row, at_most

PAGES = ("/", "/runs", "/run?run=jobs", "/run?run=jobs&state=success", "/task?run=jobs&key=job-0500000")
REQUESTS = 15  # of each page
VIEWERS = 20
WATCHED = 8.0  # seconds
MOST_SECONDS, MOST_MEMORY, MOST_CPU = 0.1, 150.0, 2.0
WAIT_TIMEOUT = 60.0


def all_parts() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder, ExitStack() as stack:
        ledger = Path(folder) / "ledger.db"
        record(f"sqlite:///{ledger}", Path(folder) / "jobs.jsonl")
        port = free_port()
        command = [sys.executable, "-m", "celeriac", "web", "--listen", f"127.0.0.1:{port}", "--ledger", str(ledger)]
        server = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(server.terminate)
        wait_for(port)
        rows = [first_byte(port, page) for page in PAGES]
        one, many = (cpu_of_viewers(server.pid, port, viewers) for viewers in (1, VIEWERS))
        memory = psutil.Process(server.pid).memory_info().rss / 2**20
    ratio = many / max(one, 0.01)
    watched = f"CPU of `celeriac web` in {WATCHED:.0f} s: {VIEWERS} viewers of a run of {MILLION:,} tasks, against one"
    return [
        *rows,
        Row(watched, f"{many:.2f} s", f"{one:.2f} s", f"{ratio:.2f}", f"{MOST_CPU:g}", at_most(ratio, MOST_CPU)),
        Row("memory of `celeriac web` after that", f"{memory:.0f} MiB", "", "", "150 MB", at_most(memory, MOST_MEMORY)),
    ]


def first_byte(port: int, page: str) -> Row:
    times = [seconds_to_first_byte(port, page) for _ in range(REQUESTS)]
    ours = f"{statistics.median(times) * 1e3:.0f} ms (longest {max(times) * 1e3:.0f})"
    what = f"first byte of {page}, a run of {MILLION:,} tasks, median of {REQUESTS}"
    return Row(what, ours, "", "", f"{MOST_SECONDS * 1e3:.0f} ms", at_most(statistics.median(times), MOST_SECONDS))


def seconds_to_first_byte(port: int, page: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_TIMEOUT)
    began = time.perf_counter()
    connection.request("GET", page, headers={"Accept": "text/html"})
    answer = connection.getresponse()
    took = time.perf_counter() - began
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{page}: {answer.status} {content[:200]!r}")
    connection.close()
    return took


def cpu_of_viewers(pid: int, port: int, number: int) -> float:
    """Return the CPU seconds of the server while some viewers watch one run."""
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_TIMEOUT) for _ in range(number)]
    for connection in connections:
        connection.request("GET", "/live/run?run=jobs")
        if (answer := connection.getresponse()).status != 200:
            raise RuntimeError(f"a viewer got {answer.status}")
    time.sleep(1.0)  # the first reads
    before = sum(psutil.Process(pid).cpu_times()[:2])
    time.sleep(WATCHED)
    used = sum(psutil.Process(pid).cpu_times()[:2]) - before
    for connection in connections:
        connection.close()
    return float(used)


def wait_for(port: int) -> None:
    until = time.monotonic() + WAIT_TIMEOUT
    while not answers(port):
        if time.monotonic() > until:
            raise RuntimeError("celeriac web does not answer")
        time.sleep(0.1)


def answers(port: int) -> bool:
    with suppress(OSError):
        return seconds_to_first_byte(port, "/healthz") > 0
    return False
