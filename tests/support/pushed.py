"""Make executors that nothing wakes up but what they have to send, and measure how long they wait."""

from __future__ import annotations

from typing import Any

from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.task.task import TaskKey
from celeriac.testing import InMemoryBroker, ManualClock

PARTS = ("capacity", "open_places", "revoker")


def pushed_executor(broker: InMemoryBroker, clock: ManualClock, **settings: Any) -> CeleryExecutor:
    """Return an executor that is told of each change of a result, so that reads of results do not wake it."""
    broker.pushes = True
    parts = {name: settings.pop(name) for name in PARTS if name in settings}
    executor = CeleryExecutor(
        Config(**{"parallelism": 2, "reconcile_interval_pushed": 10_000, **settings}),
        publisher=broker,
        results=broker,
        clock=clock,
        wall_clock=clock,
        **{"revoker": broker, **parts},
    )
    executor.sync()
    return executor


def queue(executor: CeleryExecutor, *keys: str, **fields: Any) -> None:
    for key in keys:
        executor.queue_command(key, "true", **fields)


def sent(broker: InMemoryBroker) -> list[TaskKey]:
    return [task.key for task in broker.messages]


def rest_of(executor: CeleryExecutor, clock: ManualClock, timeout: float = 40.0) -> float:
    """Return how long `wait` waits."""
    before = clock.now
    executor.wait(timeout)
    return clock.now - before
