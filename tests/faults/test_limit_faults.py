"""A limit of a key while its store, its workers and its executors fail in turn.

Each command writes a line with the time when it starts and one when it ends. A command that was killed with its worker
has no second line: it ran at the latest until the kill.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.faults.test_limits import COMMAND, keyed, lines, most_at_once, options_of, ran
from tests.support.cli_runner import Celeriac, started, until
from tests.support.servers import DurableRedisServer, PostgresServer, RabbitServer, Server

pytestmark = [pytest.mark.celery, pytest.mark.fault, pytest.mark.slow]

LIMIT = 2
TASKS = 12  # of each of two executors


@pytest.fixture(params=["redis", "rabbit and postgres"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[tuple[str, str], Server]]:
    """Yield the URLs of a broker and a result backend, and the server of the places."""
    with ExitStack() as stack:
        if request.param == "redis":
            redis = stack.enter_context(closing(DurableRedisServer()))
            yield (redis.url, redis.url), redis
        else:
            rabbit = stack.enter_context(closing(RabbitServer()))
            postgres = stack.enter_context(closing(PostgresServer()))
            yield (rabbit.url, postgres.url), postgres


class Running:
    """Two executors with one limit, and a worker."""

    def __init__(self, folder: Path, urls: tuple[str, str], stack: ExitStack) -> None:
        self.folder, self.urls, self._stack = folder, urls, stack
        self.files = [keyed(folder, name, TASKS, COMMAND.format("sleep 0.3")) for name in "ab"]
        self.how = options_of(urls, "--json", "--ledger", str(folder / "ledger.db"))
        self.worker = self._start_worker("first", 4)
        self.executors = [self._start(file, "--concurrency-limit", f"db={LIMIT}") for file in self.files]
        self.killed: dict[str, int] = {}

    def _start(self, file: Path, *options: str) -> Celeriac:
        return self._stack.enter_context(started("run", file, *self.how, *options, cwd=self.folder))

    def _start_worker(self, name: str, slots: int) -> Celeriac:
        options = options_of(self.urls, "--log-level", "error", "--name", name, "--concurrency", str(slots))
        return self._stack.enter_context(started("worker", *options, cwd=self.folder))

    def run_more(self, number: int) -> None:
        """Wait until more commands have started."""
        before = len(ran(self.folder))
        until(lambda: len(ran(self.folder)) >= before + number, f"the start of {number} more commands", 120)

    def replace_worker(self) -> None:
        """Kill the worker with its commands. The next one runs less than the limit, so one place stays reserved."""
        self.worker.kill()
        self.worker.wait_until_nothing_is_alive()
        ended = {task_id for task_id, mark, _ in lines(self.folder) if mark == "-"}
        self.killed |= {task_id: time.time_ns() for task_id in ran(self.folder) if task_id not in ended}
        self.worker = self._start_worker("second", LIMIT - 1)

    def replace_executors(self) -> None:
        """Kill the executors, and with them the reservations of tasks that no worker has taken yet."""
        for executor in self.executors:
            executor.signal(signal.SIGKILL)
        self._start_worker("third", 4)
        self.executors = [self._start(file, "--resume") for file in self.files]

    def end(self) -> int:
        """Return how many tasks have succeeded."""
        summaries = [executor.wait().summary for executor in self.executors]
        return sum(each["succeeded"] + each["had_succeeded"] for each in summaries)


def away(act: Callable[[], None], back: Callable[[], None]) -> None:
    act()
    time.sleep(2.0)
    back()


def test_no_fault_breaks_a_limit(tmp_path, servers):
    urls, store = servers
    with ExitStack() as stack:
        running = Running(tmp_path, urls, stack)
        running.run_more(2)
        away(store.freeze, store.thaw)
        running.run_more(2)
        running.replace_worker()
        running.run_more(2)
        away(store.kill, store.start)
        running.run_more(2)
        running.replace_executors()
        assert running.end() == 2 * TASKS
    assert most_at_once(tmp_path, running.killed) <= LIMIT
    assert len(set(ran(tmp_path))) == len(ran(tmp_path))
    # The worker may also have been killed between the end of a command and its report: then it runs again, too.
    assert 2 * TASKS + len(running.killed) <= len(ran(tmp_path)) <= 2 * TASKS + LIMIT
