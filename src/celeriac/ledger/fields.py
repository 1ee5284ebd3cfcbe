"""Runs and their tasks as JSON values, for the command line and for the web server."""

from __future__ import annotations

from typing import Any

import msgspec

from celeriac.ledger.counts import Counts
from celeriac.ledger.views import RunView, TaskView
from celeriac.task.fields import task_fields


def run_fields(view: RunView) -> dict[str, Any]:
    """Return the fields of `Run`."""
    return {
        "run": view.name,
        "file": view.source,
        "state": view.state.value,
        "owner": view.owner,
        "began": view.created,
        "ended": view.ended,
        "duration": round(view.duration, 3),
        "tags": view.tags,
        "paused": view.paused,
        **count_fields(view.counts),
    }


def count_fields(counts: Counts) -> dict[str, int]:
    """Return the numbers of a run's tasks."""
    return {
        "tasks": counts.tasks,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "revoked": counts.revoked,
        "never_ran": counts.never_ran,
        "waiting": counts.waiting,
        "out": counts.in_flight,
    }


def task_view_fields(view: TaskView) -> dict[str, Any]:
    """Return all facts about a task as one flat mapping, without fields that are None."""
    execution: dict[str, Any] = {} if view.execution is None else msgspec.to_builtins(view.execution)
    fields = {
        **task_fields(view.task),
        "state": view.state.value,
        "id": view.task.message_id,
        "attempt": view.task.attempt,
        "arrived": view.arrived,
        "moved": view.changed_at,
        "not_before": view.task.not_before if view.not_before is None else view.not_before,
        "reason": view.reason and view.reason.value,
        "detail": view.detail,
        **execution,
    }
    return {name: value for name, value in fields.items() if value is not None}
