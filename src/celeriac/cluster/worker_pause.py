"""Pause workers by remote control, and resume them: a paused worker takes no more messages, and what it runs goes on.

names ─► "pause", "resume" ─► workers ─► replies ─► WorkerPauseResult, or a line that says why there is none
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from celery import Celery
from msgspec import Struct, structs

from celeriac.cluster.worker_questions import ask_workers
from celeriac.cluster.worker_registry import REPLY_TIMEOUT, tables_of

UNKNOWN_COMMAND = "KeyError"  # how Kombu begins the reply to a command that the worker does not know


class WorkerPauseResult(Struct, frozen=True):
    """One worker after the request."""

    worker: str
    changed: bool
    paused: bool
    running: int
    """How many tasks it runs."""

    def fields(self) -> dict[str, Any]:
        return structs.asdict(self)


def change_worker_pause(
    app: Celery, connection: Any, workers: Collection[str], *, resume: bool, asked_by: str
) -> tuple[list[WorkerPauseResult], list[str]]:
    """Pause or resume the workers of these names. Return the results, and a line for each worker without one.

    Raise the errors of the broker's client.
    """
    replies: dict[str, Any] = {}
    ask_workers(
        app,
        connection,
        "resume" if resume else "pause",
        lambda reply: replies.update(tables_of(reply)),
        timeout=2 * REPLY_TIMEOUT,
        names=workers,
        arguments={"asked_by": asked_by},
    )
    results, errors = [], []
    for name in workers:
        match replies.get(name):
            case {"changed": bool() as changed, "running": int() as running}:
                results.append(WorkerPauseResult(name, changed, not resume, running))
            case reply:
                errors.append(f"worker {name} {problem_of_reply(reply)}")
    return results, errors


def problem_of_reply(reply: Any) -> str:
    """Return why a worker did not do what it was asked, as the end of a sentence."""
    error = reply.get("error") if isinstance(reply, Mapping) else None
    if not isinstance(error, str):
        return "does not reply: ask again"
    if error.startswith(UNKNOWN_COMMAND):
        return "cannot be paused: it is not of this version of Celeriac"
    return f"refuses: {error.removeprefix('the worker ')}"
