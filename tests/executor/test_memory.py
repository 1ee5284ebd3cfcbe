"""Test that the garbage collector looks at no task: each full collection would walk through all of them."""

from __future__ import annotations

import gc

from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.testing import InMemoryBroker

TASKS = 300


def containers() -> int:
    gc.collect()  # it also stops tracking tuples of plain values
    return len(gc.get_objects())


def test_tasks_add_nothing_for_the_garbage_collector_to_look_at():
    broker = InMemoryBroker()
    executor = CeleryExecutor(Config(parallelism=TASKS), publisher=broker, results=broker, revoker=broker)
    before = containers()
    for number in range(2 * TASKS):
        executor.queue_command(f"task-{number}", ("echo", str(number)))
    assert containers() - before < TASKS / 3
    executor.heartbeat()
    assert (executor.tasks_waiting, executor.tasks_in_flight) == (TASKS, TASKS)
    assert containers() - before < TASKS / 3
    for number in range(TASKS):
        broker.succeed(f"task-{number}")
    executor.heartbeat()
    events = executor.get_event_buffer()
    assert len(events) == 2 * TASKS
    assert containers() - before < TASKS / 3
