"""A caller with a ledger that is killed again and again: python -m tests.support.crash_loop PLAN

It queues the tasks of its plan, tracks them, and writes each end to a file before it acknowledges the event. It kills
itself with -9 at the step that the plan names. Without a step, the test kills it at any moment.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from celeriac import CeleryExecutor, Cluster, Config, Task
from celeriac.broker.amqp import AmqpPublisher
from celeriac.broker.one_by_one import OneByOnePublisher
from celeriac.broker.redis import RedisPublisher
from celeriac.cluster.local import LocalCluster
from celeriac.executor.interfaces import LedgerBatch, Receipt
from celeriac.ledger import RunLedger, SqlLedger

RUN_NAME = "crashing"
PUBLISHERS: tuple[Any, ...] = (AmqpPublisher, OneByOnePublisher, RedisPublisher)
STEPS = ("before publishing", "published", "before writing", "written", "read", "before acknowledging")


class Fuse:
    """Kills the process when a step has been reached a number of times."""

    def __init__(self, step: str | None, times: int) -> None:
        self._step, self._left = step, times

    def at(self, step: str) -> None:
        assert step in STEPS, step
        if step == self._step:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


def add_fuse(fuse: Fuse, run: RunLedger) -> None:
    """Pass every publishing, and every write to the ledger, through the fuse."""
    for kind in PUBLISHERS:
        kind.publish = fused_publish(fuse, kind.publish)
    write = run.write

    def fused_write(batch: LedgerBatch) -> None:
        fuse.at("before writing")
        write(batch)
        fuse.at("written")

    run.write = fused_write  # type: ignore[method-assign]


def fused_publish(fuse: Fuse, publish: Callable[..., Iterable[Receipt]]) -> Callable[..., list[Receipt]]:
    def publish_through_fuse(publisher: object, tasks: Sequence[Task], **options: Any) -> list[Receipt]:
        fuse.at("before publishing")
        receipts = list(publish(publisher, tasks, **options))
        fuse.at("published")
        return receipts

    return publish_through_fuse


def open_cluster(plan: dict[str, Any]) -> AbstractContextManager[Any]:
    """Open the cluster of the plan: a local one if it names no broker."""
    config = Config(parallelism=plan["parallelism"], search_interval=3.0, reconcile_interval=1.0)
    if plan["broker"] is None:
        return LocalCluster(config=config, journal=Path(plan["journal"]))
    return Cluster(plan["broker"], plan["backend"], config=config)


def read_ends(file: Path) -> tuple[int, set[str]]:
    """Return the number of the last event in the file of ends, and the keys in it."""
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return max((int(line[0]) for line in lines), default=0), {line[1] for line in lines}


def main(plan: dict[str, Any]) -> None:
    fuse = Fuse(plan["step"], plan["times"])
    file = Path(plan["ends"])
    last, ended = read_ends(file)
    with SqlLedger(plan["ledger"]) as ledger, open_cluster(plan) as cluster, file.open("a", buffering=1) as out:
        run = ledger.open_run(RUN_NAME)
        add_fuse(fuse, run)
        executor: CeleryExecutor = cluster.executor(ledger=run)
        executor.recover()
        print("recovered", flush=True)
        events = executor.read_events()
        known = ended | {event.key for event in events}
        for task in plan["tasks"]:
            if task["key"] not in known and not executor.has_task(task["key"]):
                executor.queue_command(task["key"], task["command"], cwd=plan["cwd"], max_lost=1_000)
        while True:
            ends = [event for event in events if event.state.is_final and event.number > last]
            fuse.at("read")
            for event in ends:
                out.write(f"{event.number} {event.key} {event.state}\n")
                last = event.number
            if events:
                fuse.at("before acknowledging")
                executor.acknowledge(max(event.number for event in events))
            if not executor.tasks_in_flight and not executor.tasks_waiting:
                break
            executor.heartbeat()
            events = executor.read_events()
            if not events:
                executor.wait(0.2)
    print("ended", flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
