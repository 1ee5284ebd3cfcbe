"""What a worker does with one message: runs its command, says so in the log, or hands the message back.

message ─► admitted ─► claimed ─► started ─► execute_command ─► ended, with the reason and how long it took
       │                                        └─► handed back: the worker is going, and another one will run it
       └► dropped: it came twice, or was called back
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from celery import Celery, signals, states
from celery.exceptions import Ignore, Reject
from celery.worker.request import Request

from celeriac.backend.claims.claim import AlreadyClaimed, ClaimCancelled, ClaimReply, Granted, Superseded
from celeriac.broker.app import TASK_NAME, TASK_OPTIONS
from celeriac.errors import CommandFailed
from celeriac.task.result import Reason
from celeriac.worker.execute_command import admit, execute_command_with, not_run
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.log import log_event, logger
from celeriac.worker.output import OutputPolicy
from celeriac.worker.runner import Runner
from celeriac.worker.signature_check import SignatureVerifier


def register_worker_task(
    app: Celery,
    runner: Runner,
    policy: OutputPolicy,
    *,
    guard: SignatureVerifier,
    keeper: LeaseManager | None,
    is_going: Callable[[], bool],
    request_class: type[Request],
) -> None:
    """Teach a worker's app to execute commands, until it is going."""
    body = execute_command_with(runner, policy)

    def execute_command(task: Any, message: dict[str, Any]) -> dict[str, Any]:
        admit(guard, message, task.request.id)
        names = {"key": message["key"], "id": task.request.id, "attempt": message["attempt"]}
        if message["id"] != task.request.id:
            log_event(
                "dropped", level=logging.WARNING, **names, why="its body is another message's: whose task is sent again"
            )
            raise Ignore
        if is_going() or runner.closed:
            hand_back(names)
        if keeper is not None:
            token, start_by = claimed(keeper, task.request, names, is_going)
            message = {**message, "token": token, "start_by": start_by}
        log_event("started", **names)
        try:
            outcome = body(message)
        except CommandFailed as failed:
            if runner.closed and was_cut_short(failed.report):
                if keeper is not None:
                    release_claim(keeper, task, failed)
                hand_back(names)
            log_end(failed.report, names)
            raise
        log_end(outcome, names)
        return outcome

    options = {**TASK_OPTIONS, "bind": True, "track_started": keeper is None}  # else the claim says that it has begun
    app.task(name=TASK_NAME, Request=request_class, **options)(execute_command)


def claimed(
    keeper: LeaseManager, request: Any, names: dict[str, Any], is_going: Callable[[], bool]
) -> tuple[int, float]:
    """The fencing token, and until when, on the machine's monotonic clock, the command must have started.

    Raises `Ignore` for a message to drop, `Reject` for one to hand back.
    """
    answer, start_by = keeper.claim(request.id, request, is_going)
    return allowed(answer, names), start_by


def allowed(answer: ClaimReply | None, names: dict[str, Any], say: Callable[..., None] = log_event) -> int:
    """The fencing token; raises as `claimed` does. `say` gets an event and its facts."""
    match answer:
        case Granted(token):
            return token
        case AlreadyClaimed():
            say("dropped", **names, why="it came twice: a worker has claimed it")
        case Superseded():
            say("dropped", **names, why="the task goes on elsewhere, or has ended")
        case ClaimCancelled():
            say("ended", **names, reason=Reason.REVOKED.value)
        case None:
            hand_back(names, say)
    raise Ignore


def release_claim(keeper: LeaseManager, task: Any, cut_short: CommandFailed) -> None:
    """Whoever follows the task sees that it waits again. Raises `CommandFailed` for one that was called back."""
    task.backend.store_result(task.request.id, cut_short, states.RETRY, request=task.request)
    if not keeper.release(task.request.id):
        raise CommandFailed(not_run(Reason.REVOKED, "revoked as its worker went")) from None


def was_cut_short(report: Mapping[str, Any]) -> bool:
    """Whether the worker's own end kept the command from ending, or from starting."""
    return report["reason"] == Reason.LOST or (report["reason"] == Reason.REVOKED and "pid" not in report["execution"])


def hand_back(names: dict[str, Any], say: Callable[..., None] = log_event) -> NoReturn:
    say("handed back", **names)
    raise Reject("the worker is going", requeue=True)


def log_end(outcome: Mapping[str, Any], names: dict[str, Any]) -> None:
    execution = outcome["execution"]
    log_event(
        "ended",
        level=logging.INFO if outcome["reason"] is None else logging.WARNING,
        **names,
        reason=outcome["reason"] or "success",
        exit_code=execution.get("exit_code"),
        signal=execution.get("signal"),
        duration=execution.get("duration"),
    )


def log_task_events() -> None:
    """Have the log say which tasks have come, and which were revoked before they started."""
    signals.task_received.connect(on_received, weak=False)
    signals.task_revoked.connect(on_revoked, weak=False)


def on_received(request: Any, **_: Any) -> None:
    if logger.isEnabledFor(logging.INFO):
        log_event("received", **names_of(request))


def on_revoked(request: Any, **_: Any) -> None:
    log_event("ended", **names_of(request), reason=Reason.REVOKED.value)


def names_of(request: Any) -> dict[str, Any]:
    """Never the arguments: they hold the command and its environment."""
    message: dict[str, Any] = {}
    with contextlib.suppress(LookupError, TypeError, AttributeError, ValueError):  # of another task than ours
        message = {**request.message.payload[0][0]}
    return {"key": message.get("key", request.id), "id": request.id, "attempt": message.get("attempt")}
