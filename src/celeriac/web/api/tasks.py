"""The tasks of a run."""

from __future__ import annotations

import time
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta
from starlette.responses import Response

from celeriac.control.wire import encode_explanation
from celeriac.json_types.running import ExplainOutput, Move
from celeriac.json_types.runs import Task
from celeriac.ledger.fields import task_view_fields
from celeriac.ledger.where.condition import parse_condition
from celeriac.task.state import State
from celeriac.web.api.endpoint import Call, Endpoint
from celeriac.web.output import MAX_PART, read_output
from celeriac.web.owner_requests import explain
from celeriac.web.task_pages import MAX_LIMIT, TaskFilter

TASK = {"run": "The name of a run.", "key": "The key of a task; a slash in it is written as %2F."}
DEFAULT_TASKS = 100
MAX_TEXT = 1_000  # characters: SQLite refuses to search for very long ones
Text: TypeAlias = Annotated[str, Meta(max_length=MAX_TEXT)]
AttemptNumber: TypeAlias = Annotated[int, Meta(ge=1, le=2**31)]


class TasksQuery(msgspec.Struct, forbid_unknown_fields=True):
    """A page of tasks, with filters."""

    state: Annotated[list[State], Meta(description="Only tasks in these states. Repeatable.")] = []
    queue: Annotated[Text | None, Meta(description="Only tasks of this queue.")] = None
    text: Annotated[Text | None, Meta(description="Only tasks whose keys contain this, in upper or lower case.")] = None
    where: Annotated[
        Text | None, Meta(description="Only tasks for which this holds, as `celeriac show --where` takes it.")
    ] = None
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT, description="The number of tasks.")] = DEFAULT_TASKS
    after: Annotated[str | None, Meta(description="The `next` of the page before.")] = None


class Tasks(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A page of tasks."""

    tasks: list[Task]
    """In the order in which they were queued. Those of unfinished states alone: in the order in which they start."""

    next: str | None
    """Pass it as `after` for the next page, which may exist although this one has few tasks or none; null at the
    end."""


class OutputQuery(msgspec.Struct, forbid_unknown_fields=True):
    """A part of the output of an attempt."""

    stream: Annotated[str, Meta(pattern="^(stdout|stderr)$", description="stdout or stderr.")] = "stdout"
    attempt: Annotated[AttemptNumber | None, Meta(description="By default the last that began.")] = None
    offset: Annotated[int, Meta(ge=0, le=2**62, description="The number of bytes to leave out.")] = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_PART, description="The largest number of bytes.")] = MAX_PART


def get_tasks(call: Call) -> Any:
    query: TasksQuery = call.query
    where = None
    if query.where is not None:
        is_owned = call.reads.run(call.path["run"], wait=False).owner is not None
        where = parse_condition(query.where, now=time.time() if is_owned else None, setting="where")
    wanted = TaskFilter(states=query.state, queue=query.queue, text=query.text, where=where)
    page = call.reads.tasks(call.path["run"], wanted, after=query.after, limit=query.limit)
    return {"tasks": [task_view_fields(view) for view in page.tasks], "next": page.next}


def get_task(call: Call) -> Any:
    _, view = call.reads.task(call.path["run"], call.path["key"])
    return task_view_fields(view)


def get_events(call: Call) -> Any:
    explanation = encode_explanation(explain(call.reads, call.path["run"], call.path["key"], live=False)[0][0])
    return explanation["moves"]


class ExplainQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Where the explanation comes from."""

    live: Annotated[bool, Meta(description="Ask the executor of the run first, which takes about a second.")] = True


def get_explanation(call: Call) -> Any:
    found = explain(call.reads, call.path["run"], call.path["key"], live=call.query.live)
    lives = [{**encode_explanation(history), "executor": executor or None} for history, executor in found]
    return {"lives": lives, "workers": []}


def get_output(call: Call) -> Response:
    query: OutputQuery = call.query
    part = read_output(
        call.reads,
        call.path["run"],
        call.path["key"],
        stream=query.stream,
        attempt=query.attempt,
        offset=query.offset,
        limit=query.limit,
    )
    return Response(part.content, media_type="text/plain", headers=part.headers())


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/runs/{run}/tasks",
        name="tasks",
        summary="List the tasks of a run, page by page.",
        handler=get_tasks,
        query=TasksQuery,
        result=Tasks,
        errors=(400, 404),
        path_meanings=TASK,
    ),
    Endpoint(
        method="GET",
        path="/runs/{run}/tasks/{key}",
        name="task",
        summary="Show a task.",
        handler=get_task,
        result=Task,
        errors=(404,),
        path_meanings=TASK,
    ),
    Endpoint(
        method="GET",
        path="/runs/{run}/tasks/{key}/events",
        name="task_events",
        summary="List the recorded events of a task: starts and ends of its attempts, and changes of its priority.",
        handler=get_events,
        result=list[Move],
        errors=(404,),
        path_meanings=TASK,
    ),
    Endpoint(
        method="GET",
        path="/runs/{run}/tasks/{key}/explain",
        name="explain",
        summary="Explain what a task waits for, and what has become of it.",
        handler=get_explanation,
        query=ExplainQuery,
        result=ExplainOutput,
        errors=(404,),
        path_meanings=TASK,
    ),
    Endpoint(
        method="GET",
        path="/runs/{run}/tasks/{key}/output",
        name="output",
        summary="Read the output of a task, also while it runs.",
        handler=get_output,
        query=OutputQuery,
        media_type="text/plain",
        errors=(404,),
        path_meanings=TASK,
    ),
)
