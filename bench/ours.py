"""Drive Celeriac as a scheduler does.

python -m bench.ours BROKER BACKEND
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

from bench.brokers import OURS
from bench.player import cost_of, serve
from bench.worker import QUEUE, REPORT, no_op_call
from celeriac import CeleryExecutor, Config, State, Task
from celeriac.backend.results import results_for
from celeriac.broker.app import make_app
from celeriac.broker.publishers import publisher_for
from celeriac.broker.task_message import signed_message_factory
from celeriac.cluster.cluster import Cluster
from celeriac.cluster.revoker import ControlRevoker
from celeriac.config.rate import MAX_NUMBER
from celeriac.executor.interfaces import Publisher, ResultReader, Sent

ROOM = 1_000_000  # slots
TIMEOUT = 60.0  # seconds for one batch: outages are not measured here
COMMAND = ("/bin/echo", "x" * 980)
LIMITED_KEY = "db"
RESULT_TIMEOUT = 300.0  # seconds that any result may take


class Ours:
    def __init__(self, broker: str, backend: str) -> None:
        self._app = make_app(broker_url=broker, result_backend=backend, operation_timeout=TIMEOUT)
        self._publisher = publisher_for(self._app)
        self._signing = publisher_for(self._app, message_factory=signed_message_factory("k" * 32))
        self._no_ops = publisher_for(self._app, message_factory=no_op_call)
        self._executor: CeleryExecutor
        self._now = time.monotonic()

    # — publishing —

    def publish(self, count: int, batch: int, signed: bool = False) -> dict[str, float]:
        """Publish with the publisher alone. Fail if a message was not sent."""
        publisher = self._signing if signed else self._publisher
        tasks = [Task(key=n, command=COMMAND, queue=OURS) for n in range(count)]
        receipts: list[Any] = []

        def send() -> None:
            for first in range(0, count, batch):
                receipts.extend(publisher.publish(tasks[first : first + batch], timeout=TIMEOUT))

        cost = cost_of(send)
        if unsent := [receipt for receipt in receipts if not isinstance(receipt, Sent)]:
            raise RuntimeError(f"{len(unsent)} of {count} were not sent: {unsent[0]}")
        return cost

    def publish_as_executor(self, count: int, batch: int) -> dict[str, float]:
        """Measure from `queue_task` until `trigger_tasks` returns, for each batch, as for the incumbent."""
        tasks = [Task(key=n, command=COMMAND, queue=OURS) for n in range(count)]
        reader = results_for(self._app, timeout=TIMEOUT)
        executor = self._new_executor(self._publisher, reader)

        def send() -> None:
            for first in range(0, count, batch):
                for task in tasks[first : first + batch]:
                    executor.queue_task(task)
                executor.trigger_tasks(batch)

        cost = cost_of(send)
        sent = sum(event.state is State.QUEUED for event in executor.get_event_buffer())
        reader.close()
        if sent != count:
            raise RuntimeError(f"{count - sent} of {count} were not sent")
        return cost

    # — following —

    def put_out(self, count: int, prefix: str) -> None:
        """Put tasks in flight, in an executor whose clock the benchmark advances: an hour of heartbeats in seconds."""
        self._reader = results_for(self._app, timeout=TIMEOUT, trigger=True)
        self._executor = self._new_executor(self._publisher, self._reader, clock=lambda: self._now)
        self._executor.sync()
        for n in range(count):
            self._executor.queue_task(Task(key=n, command="true", id=f"{prefix}{n}"))
        self._executor.trigger_tasks(count)
        self._executor.get_event_buffer()

    def pushes(self) -> bool:
        self._executor.sync()
        return self._reader.pushes

    def sync(self, after: float) -> dict[str, float]:
        """Call `sync` once, `after` seconds later on the executor's clock."""
        self._now += after
        cost = cost_of(self._executor.sync)
        return {**cost, "events": len(self._executor.get_event_buffer())}

    def watch(self, count: int) -> list[float]:
        """Return the moments, on the machine's monotonic clock, at which the next ends were in the event buffer."""
        seen: list[float] = []
        until = time.monotonic() + RESULT_TIMEOUT
        while len(seen) < count and time.monotonic() < until:
            self._reader.wait(1.0)
            self._executor.sync()
            seen += [time.monotonic() for event in self._executor.get_event_buffer() if event.state.is_final]
        return seen

    def store(self, task_id: str, state: str) -> None:
        """Store a result as a worker does."""
        value = {"pid": os.getpid(), "hostname": "celery@host"} if state == "STARTED" else REPORT
        self._app.backend.store_result(task_id, value, state)

    def stop_following(self) -> None:
        self._reader.close()

    # — end to end —

    def run_no_ops(self, count: int, queue: str = QUEUE) -> dict[str, float]:
        """Measure from the first `queue_task` until the last end was taken from the event buffer."""
        with results_for(self._app, timeout=TIMEOUT) as reader:
            executor = self._new_executor(self._no_ops, reader)
            return cost_of(lambda: run(executor, count, queue))

    def run_commands(self, count: int, queue: str, claims: bool, limited: bool = False) -> dict[str, float]:
        """Measure the same on `celeriac worker` processes. Without claims the executor knows of no leases either. With
        `limited` each task has a key whose limit is never reached."""
        with nullcontext() if claims else patch("celeriac.cluster.cluster.claims_for", return_value=None):
            config = Config(parallelism=ROOM, concurrency_limits={LIMITED_KEY: MAX_NUMBER} if limited else {})
            cluster = Cluster.from_app(self._app, config=config)
        with cluster:
            executor = cluster.executor()
            run(executor, 8, queue)  # now the executor knows the workers
            return cost_of(lambda: run(executor, count, queue, LIMITED_KEY if limited else None))

    def first_results(self, count: int) -> list[float]:
        """Return the seconds from `queue_task` to the success event, for one task after another."""
        with results_for(self._app, timeout=TIMEOUT) as reader:
            executor = self._new_executor(self._no_ops, reader)
            return [cost_of(lambda: run(executor, 1, QUEUE))["wall"] for _ in range(count)]

    def _new_executor(self, publisher: Publisher, reader: ResultReader, **options: Any) -> CeleryExecutor:
        config = Config(parallelism=ROOM, operation_timeout=TIMEOUT)
        return CeleryExecutor(
            config, publisher=publisher, results=reader, revoker=ControlRevoker(self._app, timeout=TIMEOUT), **options
        )


def run(executor: CeleryExecutor, count: int, queue: str, concurrency_key: str | None = None) -> None:
    for n in range(count):
        executor.queue_task(Task(key=n, command=("/bin/true",), queue=queue, concurrency_key=concurrency_key))
    until = time.monotonic() + RESULT_TIMEOUT
    ended = 0
    while ended < count:
        executor.heartbeat()
        ended += sum(event.state.is_final for event in executor.get_event_buffer())
        if time.monotonic() > until:
            raise RuntimeError(f"{ended} of {count} ended in {RESULT_TIMEOUT:g} s")
        if ended < count:
            executor.wait(1.0)


if __name__ == "__main__":
    ours = Ours(*sys.argv[1:])
    names = (
        "publish",
        "publish_as_executor",
        "put_out",
        "pushes",
        "sync",
        "watch",
        "store",
        "run_no_ops",
        "run_commands",
    )
    serve({name: getattr(ours, name) for name in (*names, "first_results", "stop_following")})
