"""A task as JSON values, for the command line and for the web server."""

from __future__ import annotations

from typing import Any

from celeriac.task.task import Task


def task_fields(task: Task) -> dict[str, Any]:
    """Return the fields of `Job`. Secret values are masked."""
    fields = {
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
        "tags": task.tags,
        "not_before": task.not_before,
        "deadline": task.deadline,
    }
    if task.cpus is not None:
        fields["cpus"] = task.cpus
    if task.memory is not None:
        fields["memory"] = task.memory
    if task.gpus:
        fields["gpus"] = task.gpus
    if task.concurrency_key is not None:
        fields["concurrency_key"] = task.concurrency_key
    if task.stdin is not None:
        fields["stdin"] = str(task.stdin)
    if task.stdin_file is not None:
        fields["stdin_file"] = str.__str__(task.stdin_file)
    if task.scratch:
        fields["scratch"] = True
    if task.artifacts:
        fields["artifacts"] = task.artifacts
    return fields
