"""`python -m tests.support.journal_writer JOURNAL JOBS`: runs the jobs with a journal, and prints each move as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celeriac import Config, LocalCluster, Secret, Task
from celeriac.cli.events_file import fields_of

PARALLELISM = 4


def moves_of(embedded: LocalCluster, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    executor = embedded.executor()
    for task in tasks:
        executor.queue_task(task)
    moves = []
    while executor.tasks_waiting or executor.tasks_in_flight:
        executor.heartbeat()
        moves += [fields_of(event) for event in executor.get_event_buffer()]
        executor.wait(1)
    return moves


def task_of(secret: str | None = None, **fields: Any) -> Task:
    """`secret` is put into the environment, as `SECRET`."""
    return Task(**fields, env={} if secret is None else {"SECRET": Secret(secret)})


def main() -> None:
    journal, jobs = map(Path, sys.argv[1:])
    tasks = [task_of(**json.loads(line)) for line in jobs.read_text().splitlines()]
    with LocalCluster(Config(parallelism=PARALLELISM), journal=journal) as embedded:
        for move in moves_of(embedded, tasks):
            print(json.dumps(move))


if __name__ == "__main__":
    main()
