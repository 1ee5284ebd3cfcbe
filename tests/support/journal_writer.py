"""Run jobs with a journal, and print each event as JSON: python -m tests.support.journal_writer JOURNAL JOBS"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celeriac import LocalCluster, Secret, Task
from celeriac.cli.events_file import event_fields

PARALLELISM = 4


def run_tasks(cluster: LocalCluster, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Run the tasks to their end, and return their events."""
    executor = cluster.executor()
    for task in tasks:
        executor.queue_task(task)
    events = []
    while executor.tasks_waiting or executor.tasks_in_flight:
        executor.heartbeat()
        events += [event_fields(event) for event in executor.get_event_buffer()]
        executor.wait(1)
    return events


def task_of(secret: str | None = None, **fields: Any) -> Task:
    """Return a task with `secret` as the variable SECRET in its environment."""
    return Task(**fields, env={} if secret is None else {"SECRET": Secret(secret)})


def main() -> None:
    journal, jobs = map(Path, sys.argv[1:])
    tasks = [task_of(**json.loads(line)) for line in jobs.read_text().splitlines()]
    with LocalCluster(PARALLELISM, journal=journal) as cluster:
        for event in run_tasks(cluster, tasks):
            print(json.dumps(event))


if __name__ == "__main__":
    main()
