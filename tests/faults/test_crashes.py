"""Executors killed with -9 again and again, at random moments and at the steps where it matters most; each time another
one goes on. Every command writes down its start: see
`tests/support/start_recorder.py`. `make test-faults` makes it 200 kills."""

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
from tests.support.crash_loop import BOOK, STEPS
from tests.support.long import LONG, slow
from tests.support.start_recorder import StartRecorder
from tests.support.workers import worker

pytestmark = pytest.mark.fault

KILLS = 67 if LONG else 4  # in each place
TASKS = 2_000 if LONG else 80  # of one run; there are as many runs as it takes
SECONDS = (0.0, 0.05, 0.3)  # that a command takes
LONGEST_LIFE = 1.5  # seconds from its recovery until an executor is killed
THREADS = 16
PATIENCE = 600.0  # seconds for one executor's work
ROOT = Path(__file__).parents[2]

logger = logging.getLogger(__name__)


class Caller:
    """What outlives each process: the plan, the ledger, and the file of what was told."""

    def __init__(self, folder: Path, chance: random.Random, urls: tuple[str, str] | None) -> None:
        folder.mkdir()
        self.folder, self.chance, self.witness = folder, chance, StartRecorder(folder)
        self.log = folder / "log"
        self.kills: Counter[str] = Counter()
        self.plan: dict[str, Any] = {
            "broker": urls and urls[0],
            "backend": urls and urls[1],
            "ledger": f"sqlite:///{folder / 'ledger.db'}",
            "journal": str(folder / "journal"),
            "told": str(folder / "told"),
            "cwd": str(folder),
            "parallelism": THREADS,
            "tasks": [
                {"key": f"k{n}", "command": self.witness.command(f"sleep {chance.choice(SECONDS)}")}
                for n in range(TASKS)
            ],
        }

    def run_and_be_killed(self) -> bool:
        """False if it came to its end first."""
        step = self.chance.choice((*STEPS, None, None, None))
        with self.started(step) as program:
            assert program.process.stdout is not None
            if program.process.stdout.readline() == b"recovered\n" and step is None:
                with suppress(subprocess.TimeoutExpired):
                    program.process.wait(self.chance.uniform(0.0, LONGEST_LIFE))
                program.process.kill()
            status = program.process.wait(PATIENCE)
        assert status in (0, -9), self.log.read_text()
        self.kills[step or "at a random moment"] += status == -9
        return status == -9

    def run_to_the_end(self) -> None:
        with self.started(None) as program:
            assert program.process.wait(PATIENCE) == 0, self.log.read_text()

    @contextmanager
    def started(self, step: str | None) -> Iterator[Celeriac]:
        plan = self.folder / "plan"
        plan.write_text(json.dumps({**self.plan, "step": step, "times": self.chance.randrange(1, 12)}))
        with (
            self.log.open("ab") as log,
            started(plan, cwd=ROOT, program="tests.support.crash_loop", log=log) as program,
        ):
            yield program

    def check(self) -> None:
        keys = [task["key"] for task in self.plan["tasks"]]
        told = [line.split() for line in Path(self.plan["told"]).read_text().splitlines()]
        assert self.witness.never_started(keys) == []
        assert self.witness.overlaps == []
        assert self.witness.unexplained(self.losses()) == []
        assert sorted(key for _, key, _ in told) == sorted(keys)
        assert {state for _, _, state in told} == {"success"}
        numbers = [int(number) for number, _, _ in told]
        assert numbers == sorted(set(numbers))

    def losses(self) -> list[Event]:
        with RunStore(self.plan["ledger"]) as store:
            run = store.find_run(BOOK)
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


def test_executors_that_are_killed_lose_nothing_and_run_nothing_twice(urls, tmp_path):
    seed = int(os.environ.get("CELERIAC_SEED", random.randrange(1_000_000)))
    logger.info("seed %d", seed)
    chance = random.Random(seed)
    kills: Counter[str] = Counter()
    starts = runs = 0
    while kills.total() < KILLS:
        runs += 1
        caller = Caller(tmp_path / f"run-{runs}", chance, urls)
        while kills.total() + caller.kills.total() < KILLS and caller.run_and_be_killed():
            pass
        caller.run_to_the_end()
        caller.check()
        kills += caller.kills
        starts += len(caller.witness.starts)
    logger.info("%d kills: %s; %d tasks, %d starts", kills.total(), dict(kills), runs * TASKS, starts)
