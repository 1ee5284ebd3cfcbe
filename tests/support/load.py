"""Put a load of commands on a cluster. Each command records its start in a file, which cannot lie."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from celeriac import CeleryExecutor, Config, Event, State
from celeriac.cluster.cluster import Cluster
from tests.support.cli_runner import Celeriac, started, until

TIMEOUT = 2.0  # seconds that an operation may take
END_TIMEOUT = 240.0  # seconds from the end of a fault until every task has ended


class Load:
    def __init__(self, cluster: Cluster, folder: Path, queue: str) -> None:
        self.executor: CeleryExecutor = cluster.executor()
        self.events: list[Event] = []
        self.slowest = 0.0
        """Seconds of the longest heartbeat."""

        self._queue = queue
        self._begun, self._finished = folder / f"{queue}.begun", folder / f"{queue}.finished"
        self._begun.touch()
        self._finished.touch()
        self._keys: list[str] = []

    def add(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self._add(f"sleep {seconds}")

    def add_meeting(self, count: int) -> None:
        """Add commands that end once this many run at the same time."""
        for _ in range(count):
            met = f"{self._begun}.met"
            self._add(f"echo >> {met}; while [ $(wc -l < {met}) -lt {count} ]; do sleep 0.1; done")

    def _add(self, command: str) -> None:
        key = f"{self._queue}-{len(self._keys)}"
        self._keys.append(key)
        command = f"echo {key} >> {self._begun}; {command}; echo {key} >> {self._finished}"
        self.executor.queue_command(key, command, queue=self._queue)

    def step(self) -> None:
        before = time.monotonic()
        self.executor.heartbeat()
        self.slowest = max(self.slowest, time.monotonic() - before)
        self.events += self.executor.get_event_buffer()
        self.executor.wait(0.05)

    def drive(self, condition: Callable[[], object], what: str, timeout: float = END_TIMEOUT) -> None:
        def reached() -> object:
            self.step()
            return condition()

        until(reached, what, timeout)

    def drive_to_ends(self, ends: int) -> None:
        self.drive(lambda: len(self.ends) >= ends, f"{ends} ends")

    def drive_for(self, seconds: float) -> None:
        """Go on for the length of a fault."""
        end = time.monotonic() + seconds
        self.drive(lambda: time.monotonic() >= end, "the end of the fault", seconds + END_TIMEOUT)

    def to_the_end(self) -> None:
        self.drive(lambda: len(self.ends) == len(self._keys), f"the end of {len(self._keys)} tasks")

    @property
    def ends(self) -> dict[Any, Event]:
        return {event.key: event for event in self.events if event.state.is_final}

    @property
    def begun(self) -> Counter[str]:
        return Counter(self._begun.read_text().split())

    @property
    def cut_short(self) -> list[str]:
        """The keys of commands that started and did not come to their end, with one entry for each such start."""
        return list((self.begun - Counter(self._finished.read_text().split())).elements())

    @property
    def lost(self) -> list[str]:
        return [key for key in self._keys if key not in self.begun]

    @property
    def doubled(self) -> set[str]:
        return {key for key, times in self.begun.items() if times > 1}

    @property
    def failed(self) -> list[Event]:
        return [event for event in self.ends.values() if event.state is not State.SUCCESS]

    @property
    def unconfirmed(self) -> set[Any]:
        """Keys of the tasks that were unconfirmed for a while."""
        return {event.key for event in self.events if event.state is State.PUBLISHING}

    @property
    def resent(self) -> set[Any]:
        """Keys of the tasks that were nowhere and were re-sent."""
        return {e.key for e in self.events if e.state is State.PUBLISHING and "neither" in (e.detail or "")}

    def check(self) -> None:
        assert self.lost == []
        assert self.failed == []
        assert len([event for event in self.events if event.state.is_final]) == len(self._keys)


def config(**options: Any) -> Config:
    fast = {"publish_backoff_max": 1.0, "reconcile_interval": 1.0, "search_interval": 3.0}
    return Config(parallelism=1_000, operation_timeout=TIMEOUT, **{**fast, **options})


@contextmanager
def workers(folder: Path, count: int, *options: str) -> Iterator[list[Celeriac]]:
    """Start workers, each with its log in `folder`."""
    with ExitStack() as stack:
        running = []
        for n in range(count):
            log = stack.enter_context((folder / f"w{n}.log").open("wb"))
            running.append(stack.enter_context(started("worker", "--name", f"w{n}", *options, cwd=folder, log=log)))
        until(lambda: all("ready" in (folder / f"w{n}.log").read_text() for n in range(count)), "workers")
        yield running
