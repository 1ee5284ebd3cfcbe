"""The task of `celeriac worker`: the steps from one message to its outcome.

message ─► admitted ─► claimed ─► started ─► execute_command ─► ended: logged with reason and duration
           │                                 └─► handed back: the worker shuts down, another one runs the command
           └─► dropped: a copy of a message, or a task that was cancelled
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NoReturn

from celery import Celery, signals, states
from celery.exceptions import Ignore, Reject
from celery.worker.request import Request

from celeriac.backend.claims.claim import AlreadyClaimed, ClaimCancelled, ClaimReply, Granted, Superseded
from celeriac.backend.claims.places import LeaveReason, TakeReply
from celeriac.backend.outputs import OutputStore
from celeriac.broker.app import TASK_OPTIONS
from celeriac.broker.command_message import TASK_NAME
from celeriac.errors import CommandFailed
from celeriac.task.result import Reason
from celeriac.worker.execute_command import admit, execute_command
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.log import log_event, logger
from celeriac.worker.outcome import not_run
from celeriac.worker.output import OutputPolicy
from celeriac.worker.resource_room import ResourceRoom, needs_of
from celeriac.worker.runner import Runner
from celeriac.worker.share import GPU_NAMES
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.start_hold import StartHold
from celeriac.worker.taken_places import NoPlace


def register_worker_task(
    app: Celery,
    runner: Runner,
    policy: OutputPolicy,
    *,
    verifier: SignatureVerifier,
    lease_manager: LeaseManager | None,
    takes_no_more: Callable[[], bool],
    request_class: type[Request],
    outputs: OutputStore | None = None,
    resources: ResourceRoom,
    start_hold: StartHold | None = None,
) -> None:
    """Register the task with a worker's app. While the worker takes no more, because it shuts down or is paused, it
    hands messages back; also those that need resources that are not free soon. `outputs` carries the output of
    commands; it needs claims."""

    def run_task(task: Any, message: dict[str, Any]) -> dict[str, Any]:
        admit(verifier, message, task.request, partial(claim_refused, task, lease_manager, takes_no_more))
        labels = {"key": message["key"], "id": task.request.id, "attempt": message["attempt"]}
        drop_if_mixed_up(message, labels)
        with resources.turn(task.request.id, needs_of(message), takes_no_more) as gpus:
            if gpus is None:
                hand_back(labels, why="what it needs is not free")
            turn = nullcontext(True) if start_hold is None else start_hold.turn(task.request.id, takes_no_more)
            with turn as may_start:
                if not may_start or takes_no_more() or runner.is_closed:
                    hand_back(labels)
                return claim_and_run(task, {**message, GPU_NAMES: gpus} if gpus else message, labels)

    def claim_and_run(task: Any, message: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
        if lease_manager is not None:
            limits = message.get("limits", ())
            reply, start_by = lease_manager.claim_with_limits(task.request.id, task.request, takes_no_more, limits)
            message = {**message, "token": token_of(reply, labels), "start_by": start_by}
        log_event("started", **labels)
        reason = LeaveReason.ENDED
        try:
            outcome = execute_command(message, runner, policy, outputs)
        except CommandFailed as failure:
            if runner.is_closed and was_cut_short(failure.report):
                reason = LeaveReason.HANDED_BACK
                if lease_manager is not None:
                    release_claim(lease_manager, task, failure, revoked="revoked while its worker shut down")
                hand_back(labels)
            log_end(failure.report, labels)
            raise
        finally:
            if lease_manager is not None and "limits" in message:
                lease_manager.leave_places(task.request.id, reason)
        log_end(outcome, labels)
        return outcome

    # With claims, the claim itself stores that the task has started.
    options = {**TASK_OPTIONS, "bind": True, "track_started": lease_manager is None}
    app.task(name=TASK_NAME, Request=request_class, **options)(run_task)


def claim_refused(
    task: Any,
    lease_manager: LeaseManager | None,
    is_shutting_down: Callable[[], bool],
    log: Callable[..., None] = log_event,
) -> None:
    """Claim the task of a refused message. Raises `Ignore` if it is claimed, and `Reject` at a shutdown."""
    if lease_manager is not None:
        reply, _ = lease_manager.claim(task.request.id, task.request, is_shutting_down)
        token_of(reply, {"id": task.request.id}, log)


def drop_if_mixed_up(message: dict[str, Any], labels: dict[str, Any]) -> None:
    """Raise `Ignore` for a message whose body belongs to another message. The executor re-sends its task."""
    if message["id"] != labels["id"]:
        log_event("dropped", level=logging.WARNING, **labels, why="its body belongs to another message")
        raise Ignore


def token_of(reply: ClaimReply | NoPlace | None, labels: dict[str, Any], log: Callable[..., None] = log_event) -> int:
    """Return the fencing token of a granted claim.

    Raises `Ignore` for a message to drop, `Reject` for a message to hand back. `log` gets an event and its labels.
    """
    match reply:
        case Granted(token):
            return token
        case AlreadyClaimed():
            log("dropped", **labels, why="a worker has claimed it already: this is a copy of its message")
        case Superseded():
            log("dropped", **labels, why="its claim is fenced: the task runs under another id, or has ended")
        case NoPlace(TakeReply.HELD):
            log("dropped", **labels, why="another message of it has the place of its limit")
        case NoPlace():
            log("dropped", **labels, why="its limit has no place any more: the executor sends it again")
        case ClaimCancelled():
            log("ended", **labels, reason=Reason.REVOKED.value)
        case None:
            hand_back(labels, log)
    raise Ignore


def release_claim(
    lease_manager: LeaseManager, task: Any, failure: Exception, log: Callable[..., None] = log_event, *, revoked: str
) -> None:
    """Release the claim of a task that is handed back, and store that the task waits again.

    Raises `CommandFailed` with the detail `revoked` if the task was cancelled meanwhile, and `Ignore` if it may run
    elsewhere: a released claim is gone, so one that is still there belongs to another worker, or to a holder under
    which this worker was declared dead. Then its executor finds out what has become of it.
    """
    task.backend.store_result(task.request.id, failure, states.RETRY, request=task.request)
    if lease_manager.release(task.request.id):
        return
    if lease_manager.is_claimed(task.request.id):
        log("dropped", id=task.request.id, why="this worker has lost its claim meanwhile")
        raise Ignore from None
    raise CommandFailed(not_run(Reason.REVOKED, revoked)) from None


def leave_places(lease_manager: LeaseManager | None, request: Any) -> None:
    """Give up the places of a task whose process was killed."""
    with contextlib.suppress(LookupError, TypeError, AttributeError, ValueError):  # as below
        limits = request.message.payload[0][0].get("limits")
        if lease_manager is not None and limits and request.worker_pid is not None:
            lease_manager.leave_places_of_killed(request.worker_pid, request.id, limits)


def was_cut_short(report: Mapping[str, Any]) -> bool:
    """Return whether the shutdown of the worker kept the command from ending, or from starting."""
    return report["reason"] == Reason.LOST or (report["reason"] == Reason.REVOKED and "pid" not in report["execution"])


def hand_back(
    labels: dict[str, Any], log: Callable[..., None] = log_event, *, why: str = "the worker takes no more"
) -> NoReturn:
    """Return the message to the broker. `log` gets an event and its labels."""
    log("handed back", **labels, why=why)
    raise Reject(why, requeue=True)


def log_end(outcome: Mapping[str, Any], labels: dict[str, Any]) -> None:
    """Log how a command ended."""
    execution = outcome["execution"]
    log_event(
        "ended",
        level=logging.INFO if outcome["reason"] is None else logging.WARNING,
        **labels,
        reason=outcome["reason"] or "success",
        exit_code=execution.get("exit_code"),
        signal=execution.get("signal"),
        duration=execution.get("duration"),
    )


def log_task_events() -> None:
    """Log each message that the worker receives, and each that was revoked before it started."""
    signals.task_received.connect(on_received, weak=False)
    signals.task_revoked.connect(on_revoked, weak=False)


def on_received(request: Any, **_: Any) -> None:
    if logger.isEnabledFor(logging.INFO):
        log_event("received", **labels_of(request))


def on_revoked(request: Any, **_: Any) -> None:
    log_event("ended", **labels_of(request), reason=Reason.REVOKED.value)


def labels_of(request: Any) -> dict[str, Any]:
    """Return key, id and attempt: never the arguments, which contain the command and its environment."""
    message: dict[str, Any] = {}
    with contextlib.suppress(LookupError, TypeError, AttributeError, ValueError):  # another kind of task
        message = {**request.message.payload[0][0]}
    return {"key": message.get("key", request.id), "id": request.id, "attempt": message.get("attempt")}
