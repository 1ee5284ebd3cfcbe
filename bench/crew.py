"""Start `celeriac worker` processes, and drive an executor on them."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from bench.player import OURS, ROOT
from celeriac import CeleryExecutor, Config, Event
from celeriac.cluster.cluster import Cluster

CLAIMING, UNCLAIMING = "celeriac", "bench.unclaiming_worker"
TIMEOUT = 120.0  # seconds that a condition may take to come true
MAX_WAIT = 0.02  # seconds, the longest `wait` of an executor


@dataclass(frozen=True)
class Place:
    """A broker and a result backend."""

    name: str
    broker: str
    backend: str


@dataclass
class Worker:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"a worker ended:\n{self.log.read_text()[-2000:]}")
        return " ready " in self.log.read_text()


def cpu_of(workers: list[Worker]) -> float:
    """Return the seconds of CPU that the workers used, without their supervisors and commands."""
    times = [psutil.Process(worker.process.pid).cpu_times() for worker in workers]
    return sum(time.user + time.system for time in times)


@contextmanager
def crew(
    place: Place, queue: str, count: int, concurrency: int, *options: str, program: str = CLAIMING
) -> Iterator[list[Worker]]:
    """Start workers, wait until they are ready, and kill them at the end."""
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
        words = ["worker", "--broker", place.broker, "--backend", place.backend, "--queues", queue]
        words += ["--concurrency", str(concurrency), *options]
        workers = [started(program, Path(folder), f"{queue}-{uuid4().hex[:8]}", words) for _ in range(count)]
        try:
            until(lambda: all(worker.is_ready for worker in workers), "workers")
            yield workers
        except TimeoutError as error:
            for worker in workers:
                error.add_note(f"{worker.name}:\n{worker.log.read_text()[-2000:]}")
            raise
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()


def started(program: str, folder: Path, name: str, words: list[str]) -> Worker:
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [OURS, "-m", program, *words, "--name", name],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    return Worker(name, process, log)


class Driver:
    """An executor on the workers, and all its events."""

    def __init__(self, cluster: Cluster) -> None:
        self.executor: CeleryExecutor = cluster.executor()
        self.events: list[Event] = []

    def drive(self, condition: Callable[[], object], what: str) -> None:
        def heartbeat() -> object:
            self.executor.heartbeat()
            self.events += self.executor.get_event_buffer()
            self.executor.wait(MAX_WAIT)
            return condition()

        try:
            until(heartbeat, what)
        except TimeoutError as error:
            error.add_note(self.executor.debug_dump())
            raise

    @property
    def ends(self) -> list[Event]:
        return [event for event in self.events if event.state.is_final]


def cluster_at(place: Place, **options: Any) -> Cluster:
    return Cluster(place.broker, place.backend, config=Config(parallelism=100_000, **options))


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come about in {TIMEOUT:g} s")
        time.sleep(0.005)  # between two polls
