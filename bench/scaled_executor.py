"""Run an executor beside simulated workers, and measure it: `python -m bench.scaled_executor BROKER BACKEND QUEUE`."""

from __future__ import annotations

import gc
import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from bench.player import cpu_used, serve
from celeriac import CeleryExecutor, Config
from celeriac.cluster.cluster import Cluster
from celeriac.task.task import TaskKey

MAX_WAIT = 0.5  # seconds, the longest `wait` between two heartbeats
TIMEOUT = 300.0  # seconds that a condition may take to come true
MAX_IN_FLIGHT = 1_000_000


class ScaledExecutor:
    def __init__(self, broker: str, backend: str, queue: str) -> None:
        self._broker, self._backend, self._queue = broker, backend, queue
        self._cluster: Cluster
        self._executor: CeleryExecutor
        self._states: dict[TaskKey, str] = {}
        self._by_state: Counter[str] = Counter()
        """How many keys are in each state: counted here, so that a heartbeat costs as much with many tasks."""

        self._ends: Counter[TaskKey] = Counter()
        """How many final events each key has."""

    def open(self, late_binding: bool) -> None:
        config = Config(parallelism=MAX_IN_FLIGHT, operation_timeout=60.0)
        self._cluster = Cluster(self._broker, self._backend, config=config, late_binding=late_binding)
        self._executor = self._cluster.executor()

    def queue(self, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            self._executor.queue_command(str(number), "true", queue=self._queue)

    def drive(self, running: int | None = None, in_flight: int | None = None, ended: int | None = None) -> float:
        """Make heartbeats until these numbers are reached. Return the seconds that it took."""

        def is_reached() -> bool:
            return (
                (running is None or self._count("running") == running)
                and (in_flight is None or self._executor.tasks_in_flight == in_flight)
                and (ended is None or self._ends.total() == ended)
            )

        began = time.monotonic()
        self._beat_until(is_reached)
        return time.monotonic() - began

    def idle(self, seconds: float) -> dict[str, Any]:
        """Make heartbeats for that time. Return the CPU of the process, of each thread, and of each heartbeat."""
        gc.collect()
        gc.freeze()
        process, threads, until = cpu_used(), cpu_by_thread(), time.monotonic() + seconds
        beats = self._beat_until(lambda: time.monotonic() >= until)
        after = cpu_by_thread()
        gc.unfreeze()
        return {
            "share": (cpu_used() - process) / seconds,
            "threads": {name: (after[name] - threads.get(name, 0.0)) / seconds for name in after},
            "beats": len(beats),
            "median": statistics.median(beats),
            "longest": max(beats),
        }

    def follow(self) -> None:
        """Make heartbeats in a thread until the process ends."""
        threading.Thread(target=self._beat_until, args=(lambda: False,), daemon=True).start()

    def totals(self) -> dict[str, int]:
        return {
            "in_flight": self._executor.tasks_in_flight,
            "running": self._count("running"),
            "ended": len(self._ends),
            "ended_twice": sum(count > 1 for count in self._ends.values()),
            "failed": self._count("failed"),
        }

    def _count(self, state: str) -> int:
        return self._by_state[state]

    def _beat_until(self, is_reached: Callable[[], bool]) -> list[float]:
        """Return the CPU seconds of each heartbeat."""
        beats, deadline = [], time.monotonic() + TIMEOUT
        while not is_reached():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.totals()} after {TIMEOUT:g} s")
            began = time.thread_time()
            self._executor.heartbeat()
            beats.append(time.thread_time() - began)
            for event in self._executor.get_event_buffer():
                self._by_state[self._states.get(event.key, "")] -= 1
                self._by_state[event.state.value] += 1
                self._states[event.key] = event.state.value
                if event.state.is_final:
                    self._ends[event.key] += 1
            self._executor.wait(MAX_WAIT)
        return beats


def cpu_by_thread() -> dict[str, float]:
    """Return the CPU seconds of each thread, by its name."""
    used: defaultdict[str, float] = defaultdict(float)
    for thread in threading.enumerate():
        if thread.ident is not None:
            used[thread.name] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return dict(used)


if __name__ == "__main__":
    executor = ScaledExecutor(*sys.argv[1:])
    serve({name: getattr(executor, name) for name in ("open", "queue", "drive", "idle", "follow", "totals")})
