"""Give tasks their places in a trace, if there is a sink of traces."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from celeriac.task.task import Task
from celeriac.telemetry.trace_context import TRACEPARENT, TaskTraces


def with_caller(task: Task, traces: TaskTraces) -> Task:
    """Return a new task with the span of its caller in its environment: so the ledger has it, too."""
    return with_variables(task, traces.caller())


def with_variables(task: Task, variables: Mapping[str, str]) -> Task:
    """Return a task with the variables of a trace, unless it has some of its own."""
    return task if not variables or TRACEPARENT in task.env else replace(task, env={**task.env, **variables})
