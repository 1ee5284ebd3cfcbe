"""`--dry-run`: the tasks in the order in which they would start."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import click

from celeriac.cli.words import on_one_line
from celeriac.task import Task


def list_tasks(tasks: Sequence[Task], *, as_json: bool) -> None:
    for task in sorted(tasks, key=lambda task: -task.priority):
        click.echo(json.dumps(fields_of(task)) if as_json else line_of(task))


def line_of(task: Task) -> str:
    command = task.command if isinstance(task.command, str) else shlex.join(task.command)
    return on_one_line(f"{task.priority:>4}  {task.queue}  {task.key}  {command}")


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
    }
