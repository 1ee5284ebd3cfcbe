"""Kill executors with -9, at random moments and at the critical steps; each time another executor recovers.

Each command records its start: see `tests/support/start_recorder.py`. A long run has 200 kills.
"""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from celeriac import Event
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.views import earlier_events
from tests.support.cli_runner import Celeriac, started
from tests.support.crash_loop import RUN_NAME, STEPS
from tests.support.long import LONG, slow
from tests.support.start_recorder import StartRecorder
from tests.support.workers import worker

pytestmark = pytest.mark.fault

KILLS = 67 if LONG else 4  # for each kind of cluster
TASKS = 2_000 if LONG else 80  # in one run; there are as many runs as needed
SECONDS = (0.0, 0.05, 0.3)  # durations of commands
MAX_LIFETIME = 1.5  # seconds from the recovery of an executor to its end
THREADS = 16
TIMEOUT = 600.0  # seconds for one executor's work
ROOT = Path(__file__).parents[2]

logger = logging.getLogger(__name__)


class Caller:
    """The parts that outlive each process: the plan, the ledger, and the file of the ends that were read."""

    def __init__(self, folder: Path, rng: random.Random, urls: tuple[str, str] | None) -> None:
        folder.mkdir()
        self.folder, self.rng, self.recorder = folder, rng, StartRecorder(folder)
        self.log = folder / "log"
        self.kills: Counter[str] = Counter()
        self.plan: dict[str, Any] = {
            "broker": urls and urls[0],
            "backend": urls and urls[1],
            "ledger": f"sqlite:///{folder / 'ledger.db'}",
            "journal": str(folder / "journal"),
            "ends": str(folder / "ends"),
            "cwd": str(folder),
            "parallelism": THREADS,
            "tasks": [
                {"key": f"k{n}", "command": self.recorder.command(f"sleep {rng.choice(SECONDS)}")} for n in range(TASKS)
            ],
        }

    def run_and_be_killed(self) -> bool:
        """Start an executor and kill it. Return False if it ended first."""
        step = self.rng.choice((*STEPS, None, None, None))
        with self.started(step) as program:
            assert program.process.stdout is not None
            if program.process.stdout.readline() == b"recovered\n" and step is None:
                with suppress(subprocess.TimeoutExpired):
                    program.process.wait(self.rng.uniform(0.0, MAX_LIFETIME))
                program.process.kill()
            status = program.process.wait(TIMEOUT)
        assert status in (0, -9), self.log.read_text()
        self.kills[step or "at a random moment"] += status == -9
        return status == -9

    def run_to_the_end(self) -> None:
        with self.started(None) as program:
            assert program.process.wait(TIMEOUT) == 0, self.log.read_text()

    @contextmanager
    def started(self, step: str | None) -> Iterator[Celeriac]:
        plan = self.folder / "plan"
        plan.write_text(json.dumps({**self.plan, "step": step, "times": self.rng.randrange(1, 12)}))
        with (
            self.log.open("ab") as log,
            started(plan, cwd=ROOT, program="tests.support.crash_loop", log=log) as program,
        ):
            yield program

    def check(self) -> None:
        keys = [task["key"] for task in self.plan["tasks"]]
        ends = [line.split() for line in Path(self.plan["ends"]).read_text().splitlines()]
        assert self.recorder.never_started(keys) == []
        assert self.recorder.overlaps == []
        assert self.recorder.unexplained(self.losses()) == []
        assert sorted(key for _, key, _ in ends) == sorted(keys)
        assert {state for _, _, state in ends} == {"success"}
        numbers = [int(number) for number, _, _ in ends]
        assert numbers == sorted(set(numbers))

    def losses(self) -> list[Event]:
        with RunStore(self.plan["ledger"]) as store:
            run = store.find_run(RUN_NAME)
            assert run is not None
            return earlier_events(store.database, run)


@pytest.fixture(params=["embedded", "redis", slow("rabbitmq and postgresql")])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str] | None]:
    if request.param == "embedded":
        yield None
        return
    broker = request.getfixturevalue("shared_redis" if request.param == "redis" else "rabbit").url
    backend = broker if request.param == "redis" else request.getfixturevalue("postgres").url
    with ExitStack() as stack:
        for name in ("one", "two"):
            options = ("--name", name, "--concurrency", str(THREADS // 2))
            stack.enter_context(worker(tmp_path, (broker, backend), *options))
        yield broker, backend


def test_killed_executors_lose_no_task_and_run_none_twice(urls, tmp_path):
    seed = int(os.environ.get("CELERIAC_SEED", random.randrange(1_000_000)))
    logger.info("seed %d", seed)
    rng = random.Random(seed)
    kills: Counter[str] = Counter()
    starts = runs = 0
    while kills.total() < KILLS:
        runs += 1
        caller = Caller(tmp_path / f"run-{runs}", rng, urls)
        while kills.total() + caller.kills.total() < KILLS and caller.run_and_be_killed():
            pass
        caller.run_to_the_end()
        caller.check()
        kills += caller.kills
        starts += len(caller.recorder.starts)
    logger.info("%d kills: %s; %d tasks, %d starts", kills.total(), dict(kills), runs * TASKS, starts)
