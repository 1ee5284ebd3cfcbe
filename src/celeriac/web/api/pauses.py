"""Pauses of runs and workers, and limits of runs. Each change needs an operator, and is logged in one line."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from celeriac.cluster.worker_pause import change_worker_pause
from celeriac.config.executor_config import SHARED_LIMITS
from celeriac.json_types.running import PausedWorkers, PauseOutput, SetOutput
from celeriac.runs.pausing import owner_of_live_run, pause_run
from celeriac.task.task import MAX_PRIORITY
from celeriac.web.api.changes import (
    WORKER,
    Key,
    broker_of,
    conflicts,
    find,
    record,
    storable,
    worker_of,
    writable,
)
from celeriac.web.api.endpoint import Call, Endpoint
from celeriac.web.api.runs import RUN
from celeriac.web.errors import Conflict
from celeriac.web.owner_requests import open_connection_of

MAX_QUEUES = 1_000
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_PRIORITY)]


class PauseBody(msgspec.Struct, forbid_unknown_fields=True):
    """The part of a run to pause or to resume."""

    queues: Annotated[list[Key], Meta(max_length=MAX_QUEUES)] = []
    """Only the tasks of these queues; without any, the whole run."""


class LimitsBody(msgspec.Struct, forbid_unknown_fields=True):
    """The limits to change, of a live `celeriac run`."""

    parallelism: Limit | None = None
    queue_limits: dict[Key, Limit | None] = {}
    """By queue; null removes a limit."""

    concurrency_limits: dict[Key, Limit | None] = {}
    """By concurrency key; null removes a limit."""

    concurrency_rates: dict[Key, str | None] = {}
    queue_rates: dict[Key, str | None] = {}


def pause(call: Call) -> Any:
    return change_pause(call, resume=False)


def resume(call: Call) -> Any:
    return change_pause(call, resume=True)


def change_pause(call: Call, *, resume: bool) -> Any:
    body: PauseBody = call.body
    queues = storable(dict.fromkeys(body.queues))
    with writable(call) as store, conflicts():
        find(store, call)
        paused = pause_run(
            store,
            call.path["run"],
            queues,
            resume=resume,
            asked_by=call.asked_by,
            open_connection=open_connection_of(call.reads),
        )
    record("resumed" if resume else "paused", run=call.path["run"], queues=len(queues))
    return {"executors": [paused.fields()], "errors": []}


def pause_worker(call: Call) -> Any:
    return change_pause_of_worker(call, resume=False)


def resume_worker(call: Call) -> Any:
    return change_pause_of_worker(call, resume=True)


def change_pause_of_worker(call: Call, *, resume: bool) -> Any:
    worker = worker_of(call)
    with broker_of(call) as (app, connection):
        results, errors = change_worker_pause(app, connection, [worker], resume=resume, asked_by=call.asked_by)
    if errors:
        raise Conflict("; ".join(errors))
    record("worker resumed" if resume else "worker paused", worker=worker, asked_by=call.asked_by)
    return {"workers": [result.fields() for result in results]}


def change_limits(call: Call) -> Any:
    body: LimitsBody = call.body
    run = call.path["run"]
    with writable(call) as store, conflicts():
        find(store, call)
        owner = owner_of_live_run(store, run, asked_by=call.asked_by, open_connection=open_connection_of(call.reads))
        shared = {name: limits for name in SHARED_LIMITS if (limits := getattr(body, name))}
        limits = owner.change_limits(body.parallelism, body.queue_limits, shared)
    record("limits changed", run=run, parallelism=limits.parallelism)
    changed = {"parallelism": limits.parallelism, "queue_limits": dict(limits.queue_limits)}
    return {"run": run, **changed, **limits.shared_limits}


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/runs/{run}/pause",
        name="pause",
        summary="Start nothing more of a run, or of queues of it.",
        handler=pause,
        body=PauseBody,
        result=PauseOutput,
        errors=(404, 409),
        path_meanings=RUN,
    ),
    Endpoint(
        method="POST",
        path="/runs/{run}/resume",
        name="resume",
        summary="End the pause of a run, or of queues of it.",
        handler=resume,
        body=PauseBody,
        result=PauseOutput,
        errors=(404, 409),
        path_meanings=RUN,
    ),
    Endpoint(
        method="PUT",
        path="/runs/{run}/limits",
        name="limits",
        summary="Change the parallelism of a live `celeriac run`, or limits of its queues.",
        handler=change_limits,
        body=LimitsBody,
        result=SetOutput,
        errors=(404, 409),
        path_meanings=RUN,
    ),
    Endpoint(
        method="POST",
        path="/workers/{worker}/pause",
        name="pause_worker",
        summary="Let a worker take nothing more until it is resumed.",
        handler=pause_worker,
        result=PausedWorkers,
        errors=(404, 409),
        path_meanings=WORKER,
    ),
    Endpoint(
        method="POST",
        path="/workers/{worker}/resume",
        name="resume_worker",
        summary="Let a paused worker take tasks again.",
        handler=resume_worker,
        result=PausedWorkers,
        errors=(404, 409),
        path_meanings=WORKER,
    ),
)
