"""Two `celeriac serve` on one ledger under load, one of which is killed again and again: with CELERIAC_LONG=1 every
20 s for five minutes. Each command writes down its start."""

from __future__ import annotations

import signal
import time
from collections import Counter
from contextlib import ExitStack
from datetime import datetime
from itertools import count

import pytest

from celeriac.ledger.run_store import RunStore
from celeriac.ledger.submit import SubmittedRun
from celeriac.task.state import State
from celeriac.task.task import Task
from tests.support.cli_runner import until
from tests.support.long import LONG
from tests.support.service_host import PATIENCE, Serving, postgres_ledger, serving
from tests.support.workers import worker

pytestmark = pytest.mark.fault

DURATION = 300.0 if LONG else 1.0  # seconds in which one is killed again and again, at least once each
PERIOD = 20.0 if LONG else 0.0  # seconds from one kill to the next, at the least
BAR = 15.0  # seconds that a takeover may take
TASKS = 60  # of a run
RUNS = 6  # unfinished at a time
COMMAND = "echo $CELERIAC_KEY $CELERIAC_ATTEMPT >> begun; sleep 0.1"


class Load:
    """Keeps some runs unfinished."""

    def __init__(self, url: str) -> None:
        self.ledger = RunStore(url)
        self.names: list[str] = []
        self._numbers = count()

    def top_up(self) -> list[SubmittedRun]:
        """Answers what has not ended."""
        open_runs = self.ledger.submitted_runs()
        for _ in range(RUNS - len(open_runs)):
            tasks = [Task(key=f"k{n}", command=COMMAND, priority=n % 3) for n in range(TASKS)]
            name = f"r{next(self._numbers)}"
            self.names.append(self.ledger.submit(name, None, tasks, is_given=True))
        return open_runs

    def is_owned_by(self, serve: Serving) -> bool:
        """Whether it has enough to do that it will not end before it is killed."""
        mine = [run for run in self.top_up() if (run.owner or "").startswith(f"process {serve.celeriac.process.pid} ")]
        return any(run.states[State.WAITING] > TASKS / 2 for run in mine)


@pytest.mark.slow
def test_whoever_is_killed_the_other_takes_over_and_nothing_is_lost_or_doubled(tmp_path, postgres, redis):
    url = postgres_ledger(postgres, "takeover")
    known = ("--broker", redis.url, "--backend", redis.url)
    load, generation = Load(url), count()
    took: list[float] = []
    with ExitStack() as stack:
        for name in ("w1", "w2"):
            stack.enter_context(worker(tmp_path, (redis.url, redis.url), "--concurrency", "4", "--name", name))

        def new() -> Serving:
            return stack.enter_context(serving(tmp_path, f"serve{next(generation)}", url, *known))

        pair = [new(), new()]
        end = time.monotonic() + DURATION
        while time.monotonic() < end or not took:
            began = time.monotonic()
            victim, other = pair
            until(lambda victim=victim: load.is_owned_by(victim), "runs that it owns", PATIENCE)  # type: ignore[misc]
            killed_at = time.time()
            victim.celeriac.signal(signal.SIGKILL)
            victim.celeriac.process.wait()
            until(lambda v=victim, o=other: taken_over(v, o), "the takeover", PATIENCE)  # type: ignore[misc]
            took.append(taken_over(victim, other)[0] - killed_at)
            pair = [other, new()]
            until(lambda began=began: load.top_up() and time.monotonic() >= began + PERIOD, "its turn")  # type: ignore[misc]
        until(lambda: not load.ledger.submitted_runs(), "the end of all", 4 * PATIENCE)
    starts = Counter((tmp_path / "begun").read_text().splitlines())
    wanted = {f"{name}/k{n} 1" for name in load.names for n in range(TASKS)}
    ends = Counter[State]()
    for name in load.names:
        ends += load.ledger.count_states(load.ledger.find_run(name) or 0)
    load.ledger.close()
    print(
        f"{len(wanted):,} tasks, {len(took)} kills; takeovers: longest {max(took):.1f} s,"
        f" mean {sum(took) / len(took):.1f} s; lost {len(wanted - starts.keys())},"
        f" doubled {sum(starts.values()) - len(starts)}"
    )
    assert ends == Counter({State.SUCCESS: len(wanted)})
    assert starts == Counter(wanted)
    assert max(took) <= BAR


def taken_over(dead: Serving, other: Serving) -> list[float]:
    """When the other one took runs of the dead, in seconds since the epoch."""
    whom = f"process {dead.celeriac.process.pid} on "
    lines = [line for line in other.lines("run taken") if line.get("taken_from", "").startswith(whom)]
    return [datetime.fromisoformat(line["time"]).timestamp() for line in lines]
