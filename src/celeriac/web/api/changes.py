"""Changes: submit, cancel, retry, change a priority, drain. Each needs an operator, and is logged in one line."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeAlias

import msgspec
from celery import Celery
from msgspec import Meta

from celeriac.broker.session import BrokerSession
from celeriac.cluster.drain import matching_workers, send_drain
from celeriac.cluster.worker_registry import REPLY_TIMEOUT
from celeriac.config.notice_targets import NoticeTargets
from celeriac.errors import InvalidConfig, InvalidInput
from celeriac.executor.traced import with_variables
from celeriac.json_types.running import CancelledRun, CancelOutput, Drained
from celeriac.json_types.runs import Submitted
from celeriac.ledger.retry import RetryFilter
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.where.condition import parse_condition
from celeriac.runs.cancellation import AskOwner, cancel_run, cancel_tasks
from celeriac.runs.inputs import inputs_of_submission
from celeriac.runs.job_file import FORMATS
from celeriac.runs.job_file.reading import check_format, read_each_line
from celeriac.runs.job_file.template import JobTemplate
from celeriac.task.tags import parse_tags
from celeriac.task.task import MAX_PRIORITY, Task, is_unicode
from celeriac.web.api.endpoint import Call, Endpoint
from celeriac.web.api.runs import RUN
from celeriac.web.api.tasks import TASK, Text
from celeriac.web.checks import cached_app
from celeriac.web.errors import BadValue, Conflict, NotFound
from celeriac.web.owner_requests import owner_of
from celeriac.worker.log import log_event

MAX_JOBS = 64 * 1024 * 1024  # bytes of a job file
MAX_KEYS = 10_000
DEFAULT_NAME = "web"
FORMAT_OF = {
    "application/json": "json",
    "application/jsonl": "jsonl",
    "application/x-ndjson": "jsonl",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "text/plain": "auto",
}
"""The format of a job file by its media type."""

WORKER = {"worker": "The name of a worker, without its host if it is the only one of that name."}
DEFAULTS = ("timeout", "grace", "retries", "retry_delay", "scratch")
Key: TypeAlias = Annotated[str, Meta(min_length=1)]
Keys: TypeAlias = Annotated[list[Key], Meta(max_length=MAX_KEYS)]
Priority: TypeAlias = Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
Wait: TypeAlias = Annotated[float, Meta(ge=0, le=60)]
RunName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]


class SubmitQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The options of `celeriac submit`."""

    name: Annotated[RunName | None, Meta(description='Name of the run. By default "web", numbered if taken.')] = None
    format: Annotated[str | None, Meta(description=f"{', '.join(FORMATS)}. By default from the Content-Type.")] = None
    template: Annotated[
        str | None, Meta(description="Makes the command of each row, object or line: see `celeriac submit -t`.")
    ] = None
    key: Annotated[str | None, Meta(description="With a template: the key of each job, for example {sample}.")] = None
    tags: Annotated[str | None, Meta(description="Tags of the run, separated by commas.")] = None
    timeout: Annotated[float | None, Meta(description="Default timeout of a job, in seconds.")] = None
    grace: Annotated[float | None, Meta(description="Default time from TERM to KILL, in seconds.")] = None
    retries: Annotated[int | None, Meta(description="Default number of retries after a failure.")] = None
    retry_delay: Annotated[float | None, Meta(description="Default delay before the first retry, in seconds.")] = None
    scratch: Annotated[bool | None, Meta(description="Give each attempt a folder for its temporary files.")] = None


class CancelBody(msgspec.Struct, forbid_unknown_fields=True):
    """The tasks to cancel."""

    keys: Keys
    wait: Wait = 0.0
    """Seconds to wait for their ends."""


class RetryBody(msgspec.Struct, forbid_unknown_fields=True):
    """The tasks to run again: by default all that did not succeed."""

    keys: Keys = []
    """Only these, however they ended."""

    failed: bool = False
    """Only those that failed."""

    where: Text | None = None
    """Only those for which this holds, as `celeriac show --where` takes it."""


class Retried(msgspec.Struct, forbid_unknown_fields=True):
    """The number of tasks that run again."""

    run: str
    tasks: int


class PriorityBody(msgspec.Struct, forbid_unknown_fields=True):
    """The new priority: a larger number is more urgent."""

    priority: Priority


class Reprioritised(msgspec.Struct, forbid_unknown_fields=True):
    """A task with a new priority."""

    run: str
    key: str
    priority: int


# — submit —


def submit(call: Call) -> Any:
    query: SubmitQuery = call.query
    format_ = query.format or FORMAT_OF[call.media_type]
    check_format(format_)
    if query.name is not None and ("\0" in query.name or not is_unicode(query.name)):
        raise BadValue("name: it cannot be stored; give Unicode without NUL")
    given = {name: value for name in DEFAULTS if (value := getattr(query, name)) is not None}
    Task(key="", command="true", **given)  # raises
    template = template_of(query)
    inputs = inputs_of_submission(NoticeTargets(), () if query.tags is None else parse_tags(query.tags))
    jobs = read_each_line(io.BytesIO(call.body), "body", format_, given, None, template)
    tasks = [with_variables(task, call.trace) for task in jobs]
    with writable(call) as store:
        try:
            run = store.submit(query.name or DEFAULT_NAME, None, tasks, is_given=query.name is not None, inputs=inputs)
        except InvalidConfig as error:
            raise Conflict(str(error)) from None
    record("submitted", run=run, tasks=len(tasks))
    return {"run": run, "tasks": len(tasks)}


def template_of(query: SubmitQuery) -> JobTemplate | None:
    if query.template is not None:
        return JobTemplate(command=query.template, key=query.key)
    if query.key is not None:
        raise BadValue("key: it needs a template; give template, for example gzip {file}")
    return None


# — cancel —


def cancel_all(call: Call) -> Any:
    with writable(call) as store, conflicts():
        run = find(store, call)
        record("cancelling", run=call.path["run"])
        return cancel_run(store, run, call.path["run"], wait=0.0, ask_owner=asker(call)).fields()


def cancel_some(call: Call) -> Any:
    body: CancelBody = call.body
    keys = storable(dict.fromkeys(body.keys))
    with writable(call) as store, conflicts():
        run = find(store, call)
        record("cancelling", run=call.path["run"], keys=len(keys))
        results, owner = cancel_tasks(store, run, call.path["run"], keys, wait=body.wait, ask_owner=asker(call))
    return {
        "tasks": [
            {
                "name": result.name,
                "outcome": result.outcome,
                "state": result.state,
                "detail": result.detail,
                "executor": owner,
            }
            for result in results
        ],
        "queues": [],
        "errors": [],
    }


# — retry, priority —


def retry(call: Call) -> Any:
    body: RetryBody = call.body
    if body.keys and (body.failed or body.where is not None):
        name = "failed" if body.failed else "where"
        raise BadValue(f"{name}: give either keys or {name}")
    where = None if body.where is None else parse_condition(body.where, setting="where")
    wanted = RetryFilter(failed=body.failed, keys=storable(dict.fromkeys(body.keys)), where=where)
    with writable(call) as store, conflicts():
        number = store.requeue(find(store, call), call.path["run"], wanted)
    record("queued again", run=call.path["run"], tasks=number)
    return {"run": call.path["run"], "tasks": number}


def change_priority(call: Call) -> Any:
    body: PriorityBody = call.body
    run, key = call.path["run"], call.path["key"]
    view, _ = call.reads.task(run, key)
    if view.owner is None:
        with writable(call) as store, conflicts():
            is_changed = store.reprioritise(find(store, call), run, key, body.priority, asked_by=call.asked_by)
    else:
        with conflicts():
            is_changed = owner_of(call.reads, run, view.owner, call.asked_by).change_priority(key, body.priority)
    if not is_changed:
        raise Conflict(f"task {key!r} does not wait, so its priority has no effect")
    record("priority changed", run=run, key=key, priority=body.priority)
    return {"run": run, "key": key, "priority": body.priority}


# — drain —


def drain(call: Call) -> Any:
    worker = worker_of(call)
    with broker_of(call) as (app, connection):
        send_drain(app, connection, [worker], asked_by=call.asked_by)
    record("draining", worker=worker, asked_by=call.asked_by)
    return {"workers": [{"worker": worker, "gone": None, "running": None}]}


def worker_of(call: Call) -> str:
    """Return the full name of the worker of the request. Raises `NotFound` and `Conflict`."""
    names = [worker.name for worker in call.reads.broker().workers]
    matching = matching_workers(call.path["worker"], names)
    if not matching:
        raise NotFound(f"no worker {call.path['worker']!r} has a lease; those with one: {', '.join(names) or 'none'}")
    if len(matching) > 1:
        raise Conflict(f"{call.path['worker']!r} may be {' or '.join(matching)}: give the full name")
    return matching[0]


@contextmanager
def broker_of(call: Call) -> Iterator[tuple[Celery, Any]]:
    """Connect to the broker. Yield its app, and the connection."""
    connection = call.reads.sources.some_connection
    app = cached_app(connection)
    session = BrokerSession(app, timeout=max(connection.operation_timeout, 2 * REPLY_TIMEOUT))
    with session.open() as opened:
        yield app, opened


# — parts —


@contextmanager
def writable(call: Call) -> Iterator[RunStore]:
    """Open the ledger to write."""
    with RunStore(call.reads.ledger.url, must_exist=True) as store:
        yield store


@contextmanager
def conflicts() -> Iterator[None]:
    """Raise `Conflict` for a run whose state does not allow the change."""
    try:
        yield
    except InvalidInput as error:
        raise Conflict(str(error)) from None


def asker(call: Call) -> AskOwner:
    """Return how to ask the owner of the run, if it takes no requests through the ledger."""
    return lambda label, keys: owner_of(call.reads, call.path["run"], label, call.asked_by).cancel(keys)


def find(store: RunStore, call: Call) -> int:
    """Return the id of the run. Raises `NotFound`."""
    run = store.find_run(call.path["run"])
    if run is None:
        raise NotFound(f"run {call.path['run']!r}: there is none in {store.database.masked_url}")
    return run


def storable(keys: dict[str, None]) -> Sequence[str]:
    """Return the keys. Raises `BadValue` for one that no ledger can hold."""
    for key in keys:
        if "\0" in key or not is_unicode(key):
            raise BadValue(f"keys: {key!r} cannot be a key; give Unicode without NUL")
    return list(keys)


def record(event: str, **facts: Any) -> None:
    """Log a change that was asked for over HTTP."""
    log_event(f"over HTTP: {event}", **facts)


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/runs",
        name="submit",
        summary="Submit a job file to `celeriac serve`.",
        handler=submit,
        query=SubmitQuery,
        raw_body=tuple(FORMAT_OF),
        max_body=MAX_JOBS,
        result=Submitted,
        status=201,
        errors=(404, 409),
    ),
    Endpoint(
        method="POST",
        path="/runs/{run}/cancel",
        name="cancel_run",
        summary="Cancel all tasks of a run that have not ended.",
        handler=cancel_all,
        result=CancelledRun,
        errors=(404, 409),
        path_meanings=RUN,
    ),
    Endpoint(
        method="POST",
        path="/runs/{run}/tasks/cancel",
        name="cancel",
        summary="Cancel tasks of a run.",
        handler=cancel_some,
        body=CancelBody,
        result=CancelOutput,
        errors=(404, 409),
        path_meanings=RUN,
    ),
    Endpoint(
        method="POST",
        path="/runs/{run}/retry",
        name="retry",
        summary="Queue tasks of a submitted run again that did not succeed.",
        handler=retry,
        body=RetryBody,
        result=Retried,
        errors=(404, 409),
        path_meanings=RUN,
    ),
    Endpoint(
        method="PUT",
        path="/runs/{run}/tasks/{key}/priority",
        name="priority",
        summary="Change the priority of a waiting task.",
        handler=change_priority,
        body=PriorityBody,
        result=Reprioritised,
        errors=(404, 409),
        path_meanings=TASK,
    ),
    Endpoint(
        method="POST",
        path="/workers/{worker}/drain",
        name="drain",
        summary="Let a worker finish what it runs, and stop.",
        handler=drain,
        result=Drained,
        errors=(404, 409),
        path_meanings=WORKER,
    ),
)
