"""Measure what one task costs an executor that has few tasks, and one that has a million.

python -m bench.scale_costs STEP COUNT REDIS LEDGER

prints the CPU seconds of one task in one step, in a process of its own. The servers' own CPU is not in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from bench.backends import OnRedis
from bench.player import cost_of
from bench.worker import REPORT
from celeriac import CeleryExecutor, Config, Task
from celeriac.backend.results import results_for
from celeriac.broker.app import make_app
from celeriac.broker.publishers import publisher_for
from celeriac.cluster.revoker import ControlRevoker
from celeriac.ledger import SqlLedger
from celeriac.testing import InMemoryBroker, ManualClock

QUEUE = "scale"
BATCH_SIZE = 1_000  # tasks sent, or results changed, between two heartbeats
CHANGES = 10_000  # results in all
IN_FLIGHT_SHARE = 10  # one of so many tasks is in flight when its executor is gone
TIMEOUT = 60.0  # seconds


def tasks(count: int) -> Iterator[Task]:
    for number in range(count):
        yield Task(key=f"job-{number:07}", command=("/bin/echo", str(number)), queue=QUEUE, id=f"{number:032x}")


@contextmanager
def on_redis(url: str, count: int) -> Iterator[CeleryExecutor]:
    app = make_app(broker_url=url, result_backend=url, operation_timeout=TIMEOUT)
    config = Config(parallelism=count, operation_timeout=TIMEOUT)
    with (
        closing(publisher_for(app)) as publisher,
        closing(results_for(app, timeout=TIMEOUT)) as results,
        closing(ControlRevoker(app, timeout=TIMEOUT)) as revoker,
    ):
        clock = ManualClock()  # it stands still: the slow reconcile is a cost of time, not of a result
        yield CeleryExecutor(config, publisher=publisher, results=results, revoker=revoker, clock=clock)


def in_memory(count: int, ledger: SqlLedger | None = None) -> CeleryExecutor:
    broker = InMemoryBroker()
    run = None if ledger is None else ledger.open_run("scale")
    return CeleryExecutor(Config(parallelism=count), publisher=broker, results=broker, revoker=broker, ledger=run)


def queueing(count: int, *_: str) -> float:
    executor = in_memory(count)

    def queue() -> None:
        for task in tasks(count):
            executor.queue_task(task)

    return cost_of(queue)["cpu"] / count


def publishing(count: int, redis: str, _: str) -> float:
    """Send all tasks while the others wait. The messages of each batch are gone before the next one, as if taken."""
    backend = OnRedis(redis)
    cpu = 0.0
    with on_redis(redis, count) as executor:
        for task in tasks(count):
            executor.queue_task(task)
        for _first in range(0, count, BATCH_SIZE):
            cpu += cost_of(lambda: executor.trigger_tasks(BATCH_SIZE))["cpu"]
            backend.clear()
            executor.get_event_buffer()
        if executor.tasks_in_flight != count:
            raise RuntimeError(f"{executor.tasks_in_flight} of {count} are in flight")
    return cpu / count


def syncing(count: int, redis: str, _: str) -> float:
    """Apply results while all tasks are in flight."""
    backend = OnRedis(redis)
    with on_redis(redis, count) as executor:
        app = make_app(broker_url=redis, result_backend=redis)
        backend.learn(lambda task_id, state: app.backend.store_result(task_id, REPORT, state))
        executor.sync()
        for task in tasks(count):
            executor.queue_task(task)
        while executor.tasks_waiting:
            executor.trigger_tasks(BATCH_SIZE)
            executor.get_event_buffer()
            backend.clear()
        ids = [task.message_id for task in tasks(count)]
        backend.fill(ids)
        executor.sync()
        executor.get_event_buffer()
        step = count // CHANGES
        changed = ids[::step][:CHANGES]
        return (
            sum(sync_batch(executor, backend, changed[n : n + BATCH_SIZE]) for n in range(0, CHANGES, BATCH_SIZE))
            / CHANGES
        )


def sync_batch(executor: CeleryExecutor, backend: OnRedis, ids: list[str]) -> float:
    backend.change(ids)
    ended, cpu, deadline = 0, 0.0, time.monotonic() + TIMEOUT
    while ended < len(ids):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{ended} of {len(ids)} ended")
        cpu += cost_of(executor.sync)["cpu"]
        ended += sum(event.state.is_final for event in executor.get_event_buffer())
        time.sleep(0.01)  # another heartbeat
    return cpu


def recording(count: int, _: str, ledger_url: str) -> float:
    """Queue all tasks with a ledger, less what queueing costs without one."""
    with SqlLedger(ledger_url) as ledger:
        executor = in_memory(count, ledger)
        return (cost_of(lambda: record(executor, count))["cpu"]) / count - queueing(count)


def record(executor: CeleryExecutor, count: int) -> None:
    for number, task in enumerate(tasks(count)):
        executor.queue_task(task)
        if number % BATCH_SIZE == 0:
            executor.sync()
    if not executor.flush():
        raise RuntimeError("the ledger is not available")


def recovering(count: int, _: str, ledger_url: str) -> float:
    """Take over all tasks of a ledger, of which a tenth was in flight."""
    with SqlLedger(ledger_url) as ledger:
        executor = in_memory(count, ledger)
        record(executor, count)
        executor.trigger_tasks(count // IN_FLIGHT_SHARE)
        executor.flush()
        in_flight = executor.tasks_in_flight
        del executor
    with SqlLedger(ledger_url) as ledger:
        executor = in_memory(count, ledger)
        cost = cost_of(executor.recover)["cpu"]
        found = (executor.tasks_in_flight, executor.tasks_waiting)
        if found != (in_flight, count - in_flight):
            raise RuntimeError(f"recovered {found} of {count}")
    return cost / count


STEPS: dict[str, Callable[[int, str, str], float]] = {
    "queueing": queueing,
    "publishing": publishing,
    "sync": syncing,
    "ledger": recording,
    "recovery": recovering,
}


if __name__ == "__main__":
    name, count, redis, ledger_url = sys.argv[1:]
    print(STEPS[name](int(count), redis, ledger_url))
