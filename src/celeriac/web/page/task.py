"""One task: its life, its command and its output."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.datastructures import QueryParams

from celeriac.ledger.explanation import explain_from_ledger
from celeriac.ledger.views import TaskView
from celeriac.task.amounts import needs_texts
from celeriac.web.errors import NotFound
from celeriac.web.output import read_output
from celeriac.web.owner_requests import explain
from celeriac.web.page import display
from celeriac.web.page.possible import actions_of_task
from celeriac.web.page.run import can_ask, run_name
from celeriac.web.page.timeline import timeline_of
from celeriac.web.reads import Reads

TAIL = 64 * 1024  # bytes of output on the page
PART = 256 * 1024  # bytes that are read at once for the whole output
MAX_NEEDS = 50
TITLES = {"stdout": "Standard output", "stderr": "Standard error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownOutput:
    """The end of one output stream."""

    stream: str
    text: str
    size: int
    skipped: int
    """The number of bytes before the text."""

    attempt: int
    has_ended: bool
    note: str | None
    whole: str
    """The address of the whole output."""

    @property
    def title(self) -> str:
        return TITLES[self.stream]


def task_values(reads: Reads, given: QueryParams, *, is_live: bool) -> dict[str, Any]:  # noqa: ARG001 - as of others
    """Return the values of the page. Raises `NotFound`."""
    run, view = reads.task(run_name(given), task_key(given))
    history = explain_from_ledger(reads.ledger, run, str(view.task.key))
    return {
        "run": run,
        "view": view,
        "task": view.task,
        "words": history.now.words,
        "can_ask": run.owner is not None and not view.state.is_final,
        "possible": actions_of_task(run, str(view.task.key), view.state, can_ask=can_ask(reads, run)),
        "timeline": timeline_of(history, time.time()),
        "facts": list(facts_of(view)),
        "needs": list(view.task.needs[:MAX_NEEDS]),
        "env": [(name, str(value)) for name, value in view.task.env.items()],  # a secret's text is six asterisks
        "outputs": outputs_of(reads, run.name, str(view.task.key)),
    }


def explanation_values(reads: Reads, given: QueryParams) -> dict[str, Any]:
    """Ask the executor of a task, which takes about a second. Raises `NotFound`."""
    run, key, asked = run_name(given), task_key(given), time.time()
    history, executor = explain(reads, run, key, live=True)[0]
    return {
        "run": run,
        "key": key,
        "executor": executor,
        "asked": asked,
        "words": history.now.words,
        "timeline": timeline_of(history, asked),
    }


def task_key(given: QueryParams) -> str:
    """Return the key that an address names. Raises `NotFound`."""
    key = given.get("key")
    if not key:
        raise NotFound("the address names no task")
    return key


def facts_of(view: TaskView) -> Iterator[tuple[str, str]]:
    """Yield the facts about a task that are not obvious: names and texts."""
    task, execution = view.task, view.execution
    yield "Queue", task.queue
    yield "Priority", display.number(task.priority)
    yield "Slots", display.number(task.slots)
    if texts := needs_texts(task):
        yield "Resources", ", ".join(texts)
    yield "Attempt", f"{task.attempt:,} of {task.retries + task.lost + 1:,}"
    if task.lost:
        yield "Lost workers", f"{task.lost:,} of {task.max_lost:,}"
    if task.timeout is not None:
        yield "Timeout", f"{display.duration(task.timeout)}, then {display.duration(task.grace)} from TERM to KILL"
    if task.cwd is not None:
        yield "Folder", task.cwd
    if task.stdin is not None or task.stdin_file is not None:
        yield "Standard input", task.stdin_file or display.size(len(str.encode(task.stdin or "")))
    if execution is not None:
        yield "Host", execution.host if execution.pid is None else f"{execution.host}, pid {execution.pid}"
        if execution.duration is not None:
            yield "Duration", display.duration(execution.duration)
        if execution.exit_code is not None:
            yield "Exit code", str(execution.exit_code)
        if execution.signal is not None:
            yield "Signal", execution.signal
        if execution.peak_memory is not None:
            yield "Peak memory", display.size(execution.peak_memory)
    yield "Id", task.message_id


def outputs_of(reads: Reads, run: str, key: str) -> list[ShownOutput]:
    """Return the end of both streams of the last attempt that began; none if no attempt has begun."""
    try:
        return [tail_of(reads, run, key, stream) for stream in TITLES]
    except NotFound:
        return []


def tail_of(reads: Reads, run: str, key: str, stream: str) -> ShownOutput:
    """Return the end of one stream. Raises `NotFound`."""
    read = partial(read_output, reads, run, key, stream=stream)
    size = read(attempt=None, offset=0, limit=0).size
    part = read(attempt=None, offset=max(0, size - TAIL), limit=TAIL)
    return ShownOutput(
        stream=stream,
        text=part.content.decode("utf-8", "replace"),
        size=part.size,
        skipped=part.offset if part.content else 0,
        attempt=part.attempt,
        has_ended=part.has_ended,
        note=part.note,
        whole=display.link("/output", run=run, key=key, stream=stream),
    )


def whole_output(reads: Reads, given: QueryParams) -> Iterator[bytes]:
    """Yield all that is kept of one stream. Raises `NotFound`."""
    stream = given.get("stream", "stdout")
    if stream not in TITLES:
        raise NotFound("the address names no output: stdout or stderr")
    read = partial(read_output, reads, run_name(given), task_key(given), stream=stream, limit=PART)
    part = read(attempt=None, offset=0)
    while part.content:
        yield part.content
        part = read(attempt=part.attempt, offset=part.offset + len(part.content))
