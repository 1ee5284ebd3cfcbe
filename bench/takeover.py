"""Measure how soon one `celeriac serve` takes over the runs of another one that was killed."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import select
from tests.support.servers import PostgresServer

from bench.crew import Place, crew, until
from bench.leases import begun
from bench.player import OURS, ROOT
from bench.table import Row, at_most
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schema import TASKS
from celeriac.task.state import State
from celeriac.task.task import Task

BAR = 15.0  # seconds, in every round
TASKS_OF_RUN = 200
CONCURRENCY = 2


def takeovers(place: Place, server: PostgresServer, rounds: int) -> list[Row]:
    took = [one_takeover(place, server) for _ in range(rounds)]
    told = f"{statistics.median(took):.1f} s (longest {max(took):.1f} s in {len(took)} rounds)"
    what = (
        f"`kill -9` of one of two `celeriac serve`, until its waiting tasks start: {place.name}, ledger in PostgreSQL"
    )
    return [Row(what, told, "", "", f"{BAR:g} s", at_most(max(took), BAR))]


def one_takeover(place: Place, server: PostgresServer) -> float:
    """Return the seconds from the kill until the other one owns the run and has started one of its waiting tasks."""
    name = f"takeover_{uuid4().hex}"
    server.sql(f"CREATE DATABASE {name}")
    url = server.url.removeprefix("db+").rpartition("/")[0] + f"/{name}"
    with (
        tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder,
        crew(place, name, 1, CONCURRENCY),
        RunStore(url) as ledger,
        serving(place, url, Path(folder)) as first,
    ):
        file = Path(folder) / "begun"
        file.touch()
        command = f"echo $CELERIAC_KEY $CELERIAC_ATTEMPT $(date +%s.%N) >> {file}; exec sleep 0.1"
        tasks = [Task(key=str(n), command=command, queue=name) for n in range(TASKS_OF_RUN)]
        ledger.submit("run", None, tasks, is_given=True)
        until(lambda: len(begun(file)) >= CONCURRENCY, "the first starts")
        with serving(place, url, Path(folder)) as other:
            moment = time.time()
            first.kill()
            waited = {f"run/{key}" for key in waiting(ledger)}
            until(lambda: f"process {other.pid} " in (ledger.submitted_runs()[0].owner or ""), "another owner")
            until(lambda: any(key in waited for key, _, _ in begun(file)), "a start")
        return min(float(at) for key, _, at in begun(file) if key in waited) - moment


def waiting(ledger: RunStore) -> list[str]:
    with ledger.database.reading() as connection:
        return list(connection.execute(select(TASKS.c.key).where(TASKS.c.state == State.WAITING.value)).scalars())


@contextmanager
def serving(place: Place, url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start `celeriac serve`, and kill it at the end."""
    log = folder / f"{uuid4().hex}.log"
    words = ["serve", "--ledger", url, "--broker", place.broker, "--backend", place.backend]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [OURS, "-m", "celeriac", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    try:
        until(lambda: " serving " in log.read_text(), "a serve")
        yield process
    finally:
        process.kill()
        process.wait()
