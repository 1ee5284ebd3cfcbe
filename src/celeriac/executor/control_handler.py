"""Answer the requests of a control channel, between two heartbeats, in the caller's thread.

take_requests ─► CancelRequest:  revoke ─► reply at once ─► a second reply when all have ended, or time is up
              ├► ExplainRequest: reply
              ├► PriorityRequest, PauseRequest, LimitsRequest: change, reply
              ├► DemandRequest: reply
              └► OwnerRequest: one of these, if this executor owns the run
"""

from __future__ import annotations

from collections.abc import Collection
from math import isfinite
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from celeriac.errors import InvalidConfig, InvalidTask, UnknownTask
from celeriac.executor.history import TaskHistory, last_event
from celeriac.executor.interfaces import ControlChannel, Ledger, PendingRequest
from celeriac.executor.parts import ExecutorParts
from celeriac.executor.requests import (
    CancelOutcome,
    CancelReply,
    CancelRequest,
    CancelResult,
    DemandReply,
    DemandRequest,
    ErrorReply,
    ExplainReply,
    ExplainRequest,
    Explanation,
    LimitsReply,
    LimitsRequest,
    OwnerRequest,
    PauseReply,
    PauseRequest,
    PriorityOutcome,
    PriorityReply,
    PriorityRequest,
)
from celeriac.log_lines import logger_for
from celeriac.task.task import TaskKey

logger = logger_for(__name__)


class ControlledExecutor(Protocol):
    """The methods of the executor that requests use."""

    def has_task(self, key: TaskKey) -> bool: ...
    def revoke_task(self, key: TaskKey) -> None: ...
    def revoke_tasks(self, *, queue: str) -> Collection[TaskKey]: ...
    def explain(self, key: TaskKey) -> Explanation: ...
    def reprioritise(self, key: TaskKey, priority: int, *, asked_by: str | None) -> None: ...
    def terminate(self, why: str) -> None: ...
    @property
    def tasks_waiting(self) -> int: ...
    @property
    def tasks_in_flight(self) -> int: ...
    @property
    def is_draining(self) -> bool: ...


class PendingCancel(Struct, eq=False):
    """A cancel request whose last reply has not been sent."""

    pending: PendingRequest
    first_reply: CancelReply
    histories: dict[str, TaskHistory]
    """The histories of the revoked tasks that had not ended at the first reply, by name."""

    reply_by: float
    """The time of the last reply, even if tasks have not ended."""

    @property
    def has_ended(self) -> bool:
        """Whether all of the revoked tasks have ended."""
        return all(history.has_ended for history in self.histories.values())


class ControlHandler:
    """Carries out requests on one executor."""

    def __init__(
        self,
        channel: ControlChannel,
        executor: ControlledExecutor,
        parts: ExecutorParts,
        *,
        run: str | None = None,
    ) -> None:
        """`run` is the name of the run that the executor has; None if it has none, or several."""
        self._channel, self._executor, self._explainer = channel, executor, parts.explainer
        self._adjustments, self._run = parts.adjustments, run
        self._queue_named = parts.intake.queue_named
        """Queues tasks that were accepted: a request may name one of them, or their queue."""

        self._pending_cancels: list[PendingCancel] = []

    @property
    def due(self) -> float | None:
        """The earliest time at which a last reply must be sent. None if no cancel request is pending."""
        return min((cancel.reply_by for cancel in self._pending_cancels), default=None)

    def handle_requests(self, now: float) -> None:
        """Answer the new requests, and the cancel requests whose tasks have ended or whose time is up."""
        for pending in self._channel.take_requests():
            match pending.request:
                case OwnerRequest() as request if problem := self._problem_with_owner(request):
                    self._channel.reply(pending, ErrorReply(problem))
                case OwnerRequest(cancel=CancelRequest(names=(), queues=())) as request:
                    self._cancel_run(pending, request)
                case OwnerRequest(requests=[request]):
                    self._handle(pending, request, now)
                case request:
                    self._handle(pending, request, now)
        if self._pending_cancels:
            self._send_last_replies(now)

    def _handle(self, pending: PendingRequest, request: object, now: float) -> None:
        match request:
            case CancelRequest() if problem := problem_with(request):
                self._channel.reply(pending, ErrorReply(problem))
            case CancelRequest(names=names, queues=queues):
                self._queue_named(names, queues)
                self._cancel(pending, request, now)
            case ExplainRequest(name=name, others=others):
                self._queue_named([name, *others], ())
                found = self._explainer.find_keys([name, *others]).values()
                keys = [key for keys in found for key in keys]
                self._channel.reply(pending, ExplainReply(tuple(map(self._executor.explain, keys))))
            case DemandRequest():
                is_over = self._executor.is_draining
                self._channel.reply(
                    pending, DemandReply(waiting={}, open_slots=0) if is_over else self._explainer.demand()
                )
            case PriorityRequest():
                self._queue_named([request.name], ())
                self._channel.reply(pending, self._reprioritise(request))
            case PauseRequest():
                self._channel.reply(pending, self._pause(request))
            case LimitsRequest():
                self._channel.reply(pending, self._change_limits(request))
            case _:
                known = "an executor knows cancel, explain, priority, pause, limits and demand"
                self._channel.reply(pending, ErrorReply(f"unknown request: {known}"))

    def _problem_with_owner(self, request: OwnerRequest) -> str | None:
        """Return why a request to the owner of a run is not for this executor, or what is wrong with it. The control
        channel has checked the process."""
        if request.run != self._run:
            return f"this executor does not own run {request.run!r}"
        if len(request.requests) != 1:
            return "the request must hold one of cancel, priority, pause and limits"
        return None

    def _cancel_run(self, pending: PendingRequest, request: OwnerRequest) -> None:
        """Revoke all tasks, also the accepted ones that are not queued yet, and start no more.

        Reply first: to revoke a million tasks takes seconds."""
        self._channel.reply(pending, CancelReply(emptied={request.run: self._executor.tasks_waiting}))
        logger.warning("run %r is cancelled, asked by %s", request.run, request.asked_by)
        self._executor.terminate(f"revoked while it waited: the run was cancelled, asked by {request.asked_by}")

    def _reprioritise(self, request: PriorityRequest) -> PriorityReply | ErrorReply:
        keys = self._explainer.find_keys([request.name])[request.name]
        if len(keys) != 1:
            return PriorityReply(PriorityOutcome.AMBIGUOUS if keys else PriorityOutcome.UNKNOWN)
        try:
            self._executor.reprioritise(keys[0], request.priority, asked_by=request.asked_by)
        except UnknownTask:
            return PriorityReply(PriorityOutcome.NOT_WAITING)
        except InvalidTask as error:
            return ErrorReply(str(error))
        return PriorityReply(PriorityOutcome.CHANGED)

    def _pause(self, request: PauseRequest) -> PauseReply:
        adjustments, executor = self._adjustments, self._executor
        queues: list[str | None] = [*dict.fromkeys(request.queues)] or [None]
        if request.resume:
            changed = [adjustments.resume(queue) for queue in queues]
        else:
            changed = [adjustments.pause(queue, asked_by=request.asked_by) for queue in queues]
        if any(changed):
            what = ", ".join(f"queue {queue!r}" for queue in request.queues) or "all tasks"
            logger.warning("%s %s, asked by %s", "resumed" if request.resume else "paused", what, request.asked_by)
        return PauseReply(
            changed=any(changed),
            paused=adjustments.pauses.whole is not None,
            queues=tuple(adjustments.pauses.queues),
            waiting=executor.tasks_waiting,
            in_flight=executor.tasks_in_flight,
        )

    def _change_limits(self, request: LimitsRequest) -> LimitsReply | ErrorReply:
        slots = self._explainer.slots
        if request.parallelism is not None or request.queue_limits or request.shared_limits:  # else it only asks
            try:
                self._adjustments.change_limits(
                    parallelism=request.parallelism,
                    queue_limits=request.queue_limits,
                    shared_limits=request.shared_limits,
                )
            except InvalidConfig as error:
                return ErrorReply(str(error))
            logger.warning("limits changed: parallelism %d, asked by %s", slots.parallelism, request.asked_by)
        return LimitsReply(
            parallelism=slots.parallelism,
            queue_limits=dict(slots.limits),
            shared_limits={**{name: {} for name in request.shared_limits}, **self._adjustments.shared_limits},
        )

    def _cancel(self, pending: PendingRequest, request: CancelRequest, now: float) -> None:
        histories: dict[str, TaskHistory] = {}
        keys_by_name = self._explainer.find_keys(dict.fromkeys(request.names))
        active_keys = {key for keys in keys_by_name.values() for key in keys if self._executor.has_task(key)}
        results = [self._cancel_name(name, keys, active_keys, histories) for name, keys in keys_by_name.items()]
        emptied = {queue: self._cancel_queue(queue, results, histories) for queue in dict.fromkeys(request.queues)}
        another_follows = bool(histories) and request.wait > 0
        reply = CancelReply(fates=tuple(results), emptied=emptied, is_last=not another_follows)
        self._channel.reply(pending, reply)
        if another_follows:
            self._pending_cancels.append(PendingCancel(pending, reply, histories, now + request.wait))

    def _cancel_name(
        self, name: str, keys: list[TaskKey], active_keys: set[TaskKey], histories: dict[str, TaskHistory]
    ) -> CancelResult:
        if not keys:
            return CancelResult(name=name, outcome=CancelOutcome.UNKNOWN)
        if len(keys) > 1:
            detail = f"{len(keys)} tasks have this name: {', '.join(map(repr, keys))}"
            return CancelResult(name=name, outcome=CancelOutcome.AMBIGUOUS, detail=detail)
        (key,) = keys
        if key not in active_keys:
            result = CancelResult(name=name, outcome=CancelOutcome.HAD_ENDED)
            return with_current_state(result, self._explainer.history.of(key))
        if self._executor.has_task(key):  # False if revoking an earlier name has skipped this task
            self._executor.revoke_task(key)
        return self._result_of_revoke(name, key, histories)

    def _result_of_revoke(self, name: str, key: TaskKey, histories: dict[str, TaskHistory]) -> CancelResult:
        history = self._explainer.history.of(key)
        if history is None or history.has_ended:
            return with_current_state(CancelResult(name=name, outcome=CancelOutcome.REVOKED), history)
        histories[name] = history
        return with_current_state(CancelResult(name=name, outcome=CancelOutcome.CALLED_BACK), history)

    def _cancel_queue(self, queue: str, results: list[CancelResult], histories: dict[str, TaskHistory]) -> int:
        """Revoke the tasks of a queue. Return how many ended at once. Add each other task to `results`."""
        revoked = 0
        for key in self._executor.revoke_tasks(queue=queue):
            if str(key) in histories:
                continue  # the request also names this task
            result = self._result_of_revoke(str(key), key, histories)
            if result.outcome is CancelOutcome.REVOKED:
                revoked += 1
            else:
                results.append(replace(result, queue=queue))
        return revoked

    def _send_last_replies(self, now: float) -> None:
        still_pending = []
        for cancel in self._pending_cancels:
            if now < cancel.reply_by and not cancel.has_ended:
                still_pending.append(cancel)
                continue
            results = [
                with_current_state(result, cancel.histories.get(result.name)) for result in cancel.first_reply.fates
            ]
            self._channel.reply(cancel.pending, replace(cancel.first_reply, fates=tuple(results), is_last=True))
        self._pending_cancels = still_pending


def handler_for(
    channel: ControlChannel | None,
    executor: ControlledExecutor,
    parts: ExecutorParts,
    ledger: Ledger | None,
) -> ControlHandler | None:
    """Return the handler of a channel, if there is one."""
    if channel is None:
        return None
    run = None if ledger is None else ledger.traits.run
    return ControlHandler(channel, executor, parts, run=run)


def with_current_state(result: CancelResult, history: TaskHistory | None) -> CancelResult:
    """Return the result with the present state of its task."""
    last = last_event(history)
    return result if last is None else replace(result, state=last.state, detail=last.detail)


def problem_with(request: CancelRequest) -> str | None:
    """Return what is wrong with a cancel request, if anything."""
    if not request.names and not request.queues:
        return "the request has neither a key nor a queue"
    if not isfinite(request.wait) or request.wait < 0:
        return f"wait: {request.wait!r} is not a number of seconds, 0 or more"
    return None
