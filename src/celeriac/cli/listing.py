"""`--dry-run`: the tasks in the order in which they would start."""

from __future__ import annotations

import heapq
import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import click

from celeriac.cli.formatting import on_one_line
from celeriac.executor.dependencies import Dependencies
from celeriac.executor.priority_queue import Entry
from celeriac.task.state import State
from celeriac.task.task import Task

NEEDS_NAMED = 3  # in a line for a person


def list_tasks(tasks: Sequence[Task], *, as_json: bool) -> None:
    for task in in_order_of_start(tasks):
        click.echo(json.dumps(fields_of(task)) if as_json else line_of(task))


def in_order_of_start(tasks: Sequence[Task]) -> Iterator[Task]:
    """One after the other, as if each ended well before the next one starts."""
    entries = [Entry(-task.priority, n, n, task) for n, task in enumerate(tasks)]
    needs, keys = Dependencies(), {task.key for task in tasks}
    needs.block([entry for entry in entries if entry.task.needs], keys.__contains__)
    ready = [entry for entry in entries if not entry.task.needs]
    heapq.heapify(ready)
    while ready:
        task = heapq.heappop(ready).task
        yield task
        for entry in needs.on_task_ended(task.key, State.SUCCESS).ready:
            heapq.heappush(ready, entry)


def line_of(task: Task) -> str:
    command = task.command if isinstance(task.command, str) else shlex.join(task.command)
    return on_one_line(f"{task.priority:>4}  {task.queue}  {task.key}  {command}{needs_of(task)}")


def needs_of(task: Task) -> str:
    if not task.needs:
        return ""
    more = len(task.needs) - NEEDS_NAMED
    return f"  (needs {', '.join(map(str, task.needs[:NEEDS_NAMED]))}{f' and {more:,} more' if more > 0 else ''})"


def fields_of(task: Task) -> dict[str, Any]:
    return {
        "key": task.key,
        "command": task.command,
        "priority": task.priority,
        "queue": task.queue,
        "slots": task.slots,
        "env": {name: str(value) for name, value in task.env.items()},  # a secret's text is six asterisks
        "cwd": task.cwd,
        "timeout": task.timeout,
        "grace": task.grace,
        "retries": task.retries,
        "retry_delay": task.retry_delay,
        "on_worker_lost": task.on_worker_lost.value,
        "max_lost": task.max_lost,
        "needs": task.needs,
        "on_need_failed": task.on_need_failed.value,
    }
