"""What a worker does with one message: runs its command, says so in the log, or hands the message back.

message ─► started ─► execute_command ─► ended, with the reason and how long it took
                                     └─► handed back: the worker is going, and another one will run it
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery, signals
from celery.exceptions import Reject
from celery.worker.request import Request

from celeriac.app import TASK_NAME, TASK_OPTIONS
from celeriac.errors import CommandFailed
from celeriac.result import Reason
from celeriac.worker.execute_command import OutputPolicy, execute_command_with
from celeriac.worker.log import logger, tell
from celeriac.worker.runner import Runner


def take_duty(
    app: Celery, runner: Runner, policy: OutputPolicy, *, is_going: Callable[[], bool], request_class: type[Request]
) -> None:
    """Teach a worker's app to execute commands, until it is going."""
    body = execute_command_with(runner, policy)

    def execute_command(message: dict[str, Any]) -> dict[str, Any]:
        names = {"key": message["key"], "id": message["id"], "attempt": message["attempt"]}
        if is_going() or runner.closed:
            hand_back(names)
        tell("started", **names)
        try:
            outcome = body(message)
        except CommandFailed as failed:
            if runner.closed and was_cut_short(failed.report):
                hand_back(names)
            tell_end(failed.report, names)
            raise
        tell_end(outcome, names)
        return outcome

    app.task(name=TASK_NAME, Request=request_class, **TASK_OPTIONS)(execute_command)


def was_cut_short(report: Mapping[str, Any]) -> bool:
    """Whether the worker's own end kept the command from ending, or from starting."""
    return report["reason"] == Reason.LOST or (report["reason"] == Reason.REVOKED and "pid" not in report["execution"])


def hand_back(names: dict[str, Any]) -> None:
    tell("handed back", **names)
    raise Reject("the worker is going", requeue=True)


def tell_end(outcome: Mapping[str, Any], names: dict[str, Any]) -> None:
    execution = outcome["execution"]
    tell(
        "ended",
        level=logging.INFO if outcome["reason"] is None else logging.WARNING,
        **names,
        reason=outcome["reason"] or "success",
        exit_code=execution.get("exit_code"),
        signal=execution.get("signal"),
        duration=execution.get("duration"),
    )


def tell_arrivals() -> None:
    """Have the log say which tasks have come, and which were revoked before they started."""
    signals.task_received.connect(on_received, weak=False)
    signals.task_revoked.connect(on_revoked, weak=False)


def on_received(request: Any, **_: Any) -> None:
    if logger.isEnabledFor(logging.INFO):
        tell("received", **names_of(request))


def on_revoked(request: Any, **_: Any) -> None:
    tell("ended", **names_of(request), reason=Reason.REVOKED.value)


def names_of(request: Any) -> dict[str, Any]:
    """Never the arguments: they hold the command and its environment."""
    message: dict[str, Any] = {}
    with contextlib.suppress(LookupError, TypeError, AttributeError, ValueError):  # of another task than ours
        message = {**request.message.payload[0][0]}
    return {"key": message.get("key", request.id), "id": request.id, "attempt": message.get("attempt")}
