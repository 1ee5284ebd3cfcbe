"""Kill one of two `celeriac serve` processes on one ledger under load, again and again: in a long run every 20 s for
five minutes. Each command records its start."""

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
from tests.support.service_host import SERVICE_TIMEOUT, ServiceProcess, postgres_ledger, running_service
from tests.support.workers import worker

pytestmark = pytest.mark.fault

DURATION = 300.0 if LONG else 1.0  # seconds in which services are killed, at least one
PERIOD = 20.0 if LONG else 0.0  # seconds from one kill to the next, at least
MAX_TAKEOVER = 15.0  # seconds that a takeover may take
TASKS = 60  # in a run
RUNS = 6  # unfinished at a time
COMMAND = "echo $CELERIAC_KEY $CELERIAC_ATTEMPT >> begun; sleep 0.1"


class Load:
    """Submits runs so that some are always unfinished."""

    def __init__(self, url: str) -> None:
        self.store = RunStore(url)
        self.names: list[str] = []
        self._numbers = count()

    def top_up(self) -> list[SubmittedRun]:
        """Submit runs up to `RUNS` unfinished ones. Return those that were unfinished before."""
        open_runs = self.store.submitted_runs()
        for _ in range(RUNS - len(open_runs)):
            tasks = [Task(key=f"k{n}", command=COMMAND, priority=n % 3) for n in range(TASKS)]
            name = f"r{next(self._numbers)}"
            self.names.append(self.store.submit(name, None, tasks, is_given=True))
        return open_runs

    def has_work_for(self, serve: ServiceProcess) -> bool:
        """Return whether a service owns a run that will not end before the service is killed."""
        owned = [run for run in self.top_up() if (run.owner or "").startswith(f"process {serve.celeriac.process.pid} ")]
        return any(run.states[State.WAITING] > TASKS / 2 for run in owned)


@pytest.mark.slow
def test_a_service_takes_over_the_runs_of_a_killed_one_and_loses_and_doubles_nothing(tmp_path, postgres, redis):
    url = postgres_ledger(postgres, "takeover")
    known = ("--broker", redis.url, "--backend", redis.url)
    load, generation = Load(url), count()
    took: list[float] = []
    with ExitStack() as stack:
        for name in ("w1", "w2"):
            stack.enter_context(worker(tmp_path, (redis.url, redis.url), "--concurrency", "4", "--name", name))

        def new() -> ServiceProcess:
            return stack.enter_context(running_service(tmp_path, f"serve{next(generation)}", url, *known))

        pair = [new(), new()]
        end = time.monotonic() + DURATION
        while time.monotonic() < end or not took:
            began = time.monotonic()
            victim, other = pair
            until(lambda victim=victim: load.has_work_for(victim), "a run of the service", SERVICE_TIMEOUT)  # type: ignore[misc]
            killed_at = time.time()
            victim.celeriac.signal(signal.SIGKILL)
            victim.celeriac.process.wait()
            until(lambda v=victim, o=other: taken_over(v, o), "the takeover", SERVICE_TIMEOUT)  # type: ignore[misc]
            took.append(taken_over(victim, other)[0] - killed_at)
            pair = [other, new()]
            until(lambda began=began: load.top_up() and time.monotonic() >= began + PERIOD, "the next kill")  # type: ignore[misc]
        until(lambda: not load.store.submitted_runs(), "the end of all runs", 4 * SERVICE_TIMEOUT)
    starts = Counter((tmp_path / "begun").read_text().splitlines())
    expected = {f"{name}/k{n} 1" for name in load.names for n in range(TASKS)}
    ends = Counter[State]()
    for name in load.names:
        ends += load.store.count_states(load.store.find_run(name) or 0)
    load.store.close()
    print(
        f"{len(expected):,} tasks, {len(took)} kills; takeovers: longest {max(took):.1f} s,"
        f" mean {sum(took) / len(took):.1f} s; lost {len(expected - starts.keys())},"
        f" doubled {sum(starts.values()) - len(starts)}"
    )
    assert ends == Counter({State.SUCCESS: len(expected)})
    assert starts == Counter(expected)
    assert max(took) <= MAX_TAKEOVER


def taken_over(dead: ServiceProcess, other: ServiceProcess) -> list[float]:
    """Return the times at which the other service took runs of the dead one, in seconds since the epoch."""
    label = f"process {dead.celeriac.process.pid} on "
    lines = [line for line in other.log_lines("run taken") if line.get("taken_from", "").startswith(label)]
    return [datetime.fromisoformat(line["time"]).timestamp() for line in lines]
