"""Measure the cost of a ledger, and the time to resume from it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from redis import Redis
from sqlalchemy import update

from bench.claiming import in_turns
from bench.crew import Place, crew
from bench.player import Cost
from bench.table import Row, at_least, at_most
from celeriac import CeleryExecutor, Config, Event, State, Task
from celeriac.cluster.cluster import Cluster
from celeriac.ledger import SqlLedger
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schema import TASKS
from celeriac.runs.record import content_digest
from celeriac.testing import InMemoryBroker

PYTHON = sys.executable
COMMANDS = 5_000
MILLION = 1_000_000
OUT = 10_000
LEAST = 0.9  # of the rate without a ledger
RECORDING, RESUMING, RECOVERY = 60.0, 10.0, 3.0  # seconds
MEMORY = 1024.0  # MiB
FED = 5_000  # tasks between two heartbeats
PARTS_OUT = 4  # kinds of tasks in flight, equally many


MEASURED = """
import resource, subprocess, sys, time
began = time.monotonic()
ended = subprocess.run(sys.argv[1:], check=True, stdout=subprocess.PIPE)
took = time.monotonic() - began
print(took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, ended.stdout.decode())
"""
"""From a process that is small itself: what one has in memory when it starts another counts as the other's."""


def cost(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
        file, ledger = Path(folder) / "true.jsonl", Path(folder) / "ledger.db"
        file.write_text('{"command": ["/bin/true"]}\n' * COMMANDS)

        def run(kept: str) -> Cost:
            began = time.monotonic()
            command = [PYTHON, "-m", "celeriac", "run", "-q", "--local", "--ledger", kept, str(file)]
            subprocess.run(command, check=True)
            return {"wall": time.monotonic() - began}

        pairs = in_turns(lambda: run(str(ledger)), lambda: run("none"), rounds)
    ratios = [without["wall"] / with_["wall"] for with_, without in pairs]
    ratio = statistics.median(ratios)
    rates = [f"{COMMANDS / statistics.median(pair[side]['wall'] for pair in pairs):,.0f}/s" for side in (0, 1)]
    scatter = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
    what = f"`celeriac run`, {COMMANDS:,} × `/bin/true`, start-up included: with a ledger in SQLite"
    return [Row(what, rates[0], f"without: {rates[1]}", scatter, f"{LEAST:g}", at_least(ratio, LEAST))]


def million() -> list[Row]:
    """Record a million tasks through the executor, end the run, and resume it."""
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
        file, url = Path(folder) / "jobs.jsonl", f"sqlite:///{folder}/ledger.db"
        with file.open("w") as out:
            for number in range(MILLION):
                out.write(f'{{"key": "job-{number:07}", "command": ["/bin/echo", "{number}"]}}\n')
        recorded = record(url, file)
        took, memory = resumed(file, f"{folder}/ledger.db")
        with file.open("a") as out:
            out.write('{"key": "one more", "command": "true"}\n')
        took_changed, memory_changed = resumed(file, f"{folder}/ledger.db")
    return [
        Row(
            f"{MILLION:,} tasks queued and recorded in SQLite",
            f"{recorded:.1f} s",
            "",
            "",
            f"{RECORDING:g} s",
            at_most(recorded, RECORDING),
        ),
        Row(
            f"`celeriac run --resume` of a run of {MILLION:,} that has ended",
            f"{took:.1f} s, {memory:,.0f} MiB",
            "",
            "",
            f"{RESUMING:g} s, {MEMORY:,.0f} MiB",
            min(at_most(took, RESUMING), at_most(memory, MEMORY)),
        ),
        Row(
            "the same, with one line more in the file",
            f"{took_changed:.1f} s, {memory_changed:,.0f} MiB",
            "",
            "",
            "",
            None,
        ),
    ]


def record(url: str, file: Path) -> float:
    tasks = [Task(key=f"job-{number:07}", command=("/bin/echo", str(number))) for number in range(MILLION)]
    broker = InMemoryBroker()
    with RunStore(url) as ledger:
        book = ledger.open_run(ledger.create_run("jobs", str(file)), "jobs", keeps_events=False)
        executor = CeleryExecutor(Config(), publisher=broker, results=broker, revoker=broker, ledger=book)
        began = time.monotonic()
        for number, task in enumerate(tasks):
            executor.queue_task(task)
            if number % FED == 0:
                executor.sync()
        assert executor.flush()
        took = time.monotonic() - began
        with ledger.database.writing() as connection:
            connection.execute(update(TASKS).values(state=State.SUCCESS.value))
        ledger.set_content(book.run, content_digest(str(file), "auto", {}), MILLION)
        ledger.close_run(book)
    return took


def resumed(file: Path, ledger: str) -> tuple[float, float]:
    """Return seconds and MiB."""
    command = [PYTHON, "-m", "celeriac", "run", "--local", "--resume", "--json", "--ledger", ledger, str(file)]
    ended = subprocess.run([PYTHON, "-c", MEASURED, *command], check=True, capture_output=True)
    took, memory, summary = ended.stdout.decode().split(maxsplit=2)
    assert json.loads(summary)["had_succeeded"] == MILLION
    return float(took), float(memory) / 1024


def recovery(broker: str, backend: str, port: int) -> list[Row]:
    """Recover tasks of which a quarter each has ended, runs, is at the broker, and is nowhere."""
    place = Place("Redis", broker, backend)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="celeriac-bench-"))
        client = stack.enter_context(Redis(port=port))
        client.flushall()
        stack.enter_context(crew(place, "elsewhere", 1, 4))
        url = f"sqlite:///{folder}/ledger.db"
        config = Config(parallelism=OUT)
        with SqlLedger(url) as ledger, Cluster(broker, backend, config=config, late_binding=False) as cluster:
            executor = cluster.executor(ledger=ledger.open_run("run"))
            tasks = [executor.queue_command(f"task-{number}", "true") for number in range(OUT)]
            executor.heartbeat()
            assert executor.tasks_in_flight == OUT
            quarter = OUT // PARTS_OUT
            for task in tasks[:quarter]:
                cluster.app.backend.store_result(task.message_id, None, "SUCCESS")
            lose(client, quarter)
        with SqlLedger(url) as ledger, Cluster(broker, backend, config=config, late_binding=False) as cluster:
            before = client.info("stats")["total_reads_processed"]
            began = time.monotonic()
            executor = cluster.executor(ledger=ledger.open_run("run"))
            executor.recover()
            recovered = time.monotonic() - began
            events: list[Event] = []
            while sum(event.state is State.QUEUED for event in events) < quarter:
                executor.heartbeat()
                events += executor.get_event_buffer()
                executor.wait(0.05)
            took = time.monotonic() - began
            reads = client.info("stats")["total_reads_processed"] - before
            assert sum(event.state is State.SUCCESS for event in events) == quarter
    return [
        Row(
            f"recovery of {OUT:,} tasks in flight on Redis, until lost ones are sent again",
            f"{took:.2f} s, of which recover {recovered:.2f} s, {reads:,} reads at the server",
            "",
            "",
            f"{RECOVERY:g} s",
            at_most(took, RECOVERY),
        )
    ]


def lose(client: Redis, count: int) -> None:
    """Delete the last messages of each list."""
    for key in client.scan_iter("default*", _type="list"):
        client.ltrim(key, count, -1)
