"""The argument of the Celery task that runs a command. It needs no Celery: a local cluster has none."""

from __future__ import annotations

import time
from typing import Any

from celeriac.task.task import Secret, Task
from celeriac.telemetry.telemetry import Telemetry

TASK_NAME = "celeriac.execute_command"


def command_message(task: Task) -> dict[str, Any]:
    """Return the one argument of `celeriac.execute_command`: plain data, with secrets in clear text."""
    env = task.env
    message: dict[str, Any] = {
        "key": str(task.key),
        "id": task.message_id,
        "attempt": task.attempt,
        "command": task.command if isinstance(task.command, str) else list(task.command),
        "env": {name: str.__str__(value) for name, value in env.items()} if env else {},
        "secrets": [name for name, value in env.items() if isinstance(value, Secret)] if env else [],
        "cwd": task.cwd,
        "timeout": task.timeout,
        "grace": task.grace,
        "sent_at": time.time(),
    }
    if task.stdin is not None:
        message["stdin"] = str.__str__(task.stdin)
        if isinstance(task.stdin, Secret):
            message["stdin_is_secret"] = True
    if task.stdin_file is not None:
        from celeriac.task.sent_file import SentFile  # late: few tasks have an input

        if isinstance(task.stdin_file, SentFile):
            message["stdin_data"] = task.stdin_file.read()
        else:
            message["stdin_file"] = task.stdin_file
    if task.cpus is not None:
        message["cpus"] = task.cpus
    if task.memory is not None:
        message["memory"] = task.memory
    if task.gpus:
        message["gpus"] = task.gpus
    if task.scratch:
        message["scratch"] = True
    if task.artifacts:
        message["artifacts"] = list(task.artifacts)
    if task.deadline is not None:
        message["deadline"] = task.deadline
    return message


def traced_message(task: Task, telemetry: Telemetry | None) -> dict[str, Any]:
    """Return the message of a task. If `telemetry` has a sink of traces, its command is told the span of its task."""
    message = command_message(task)
    if telemetry is None or telemetry.traces is None:
        return message
    variables = telemetry.traces.variables(task.id, task.env)
    if variables is None:
        message["traced"] = True
    else:
        message["env"].update(variables)
    return message
