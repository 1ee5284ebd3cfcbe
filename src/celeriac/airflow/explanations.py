"""Why a workload waits, as this scheduler's executor knows it: for the page, `airflow celeriac explain` and the log.

    page, command ─► broker ─► the thread `celeriac-control` ─► RequestQueue ─► sync: answer, from memory
                  ◄─ broker ◄─────────────────────────────────┘

Other processes can only read here. Every scheduler gets each request, and the one that has the workload answers.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from celeriac.airflow import versions
from celeriac.airflow.submitted import SubmittedWorkload, SubmittedWorkloads
from celeriac.cluster.cluster import Cluster
from celeriac.control.broker_server import BrokerControlServer
from celeriac.control.mailbox import has_mailboxes
from celeriac.errors import UnknownTask
from celeriac.executor.executor import CeleryExecutor as Engine
from celeriac.executor.interfaces import PendingRequest
from celeriac.executor.requests import (
    CancelOutcome,
    CancelReply,
    CancelRequest,
    CancelResult,
    CurrentStatus,
    DemandReply,
    DemandRequest,
    ErrorReply,
    ExplainReply,
    ExplainRequest,
    Explanation,
    OwnerRequest,
    PriorityOutcome,
    PriorityReply,
    Reply,
    WaitReason,
)
from celeriac.task.state import State

MAX_ANSWERS = 50  # explanations in one heartbeat: any client of the broker may ask


class Explainer:
    """Explains the workloads of one executor, from memory. Only the scheduler's own thread calls it."""

    def __init__(self, executor: Any, submitted: SubmittedWorkloads, cluster: Cluster, engine: Engine) -> None:
        self._executor, self._submitted = executor, submitted
        self._cluster, self._engine = cluster, engine

    def explain(self, name: str) -> Explanation | None:
        """Explain the workload with this Celery id, or of this row in Airflow's database; None if it is not known.

        The explanation has the name as its key.
        """
        explanation = self._explanation_of(name)
        return None if explanation is None else replace(explanation, key=name)

    def _explanation_of(self, name: str) -> Explanation | None:
        submitted = self._find(name)
        if submitted is not None and self._engine.has_task(submitted.id):
            return self._with_workers(self._engine.explain(submitted.id))
        for queue in versions.executor_queues(self._executor):
            for workload in queue.values():
                if name in names_of(workload):
                    return self._in_airflows_queue(name, workload)
        try:
            return self._engine.explain(name)
        except UnknownTask:
            return None

    def _find(self, name: str) -> SubmittedWorkload | None:
        if (submitted := self._submitted.with_id(name)) is not None:
            return submitted
        return next((each for each in self._submitted if each.ti_id is not None and str(each.ti_id) == name), None)

    def _in_airflows_queue(self, name: str, workload: Any) -> Explanation:
        """Explain a workload that Airflow's part of the executor has not given to the engine."""
        executor = self._executor
        priority = versions.workload_priority(workload)
        waiting = [each for queue in versions.executor_queues(executor) for each in queue.values()]
        ahead = sum(versions.workload_priority(each) > priority for each in waiting)
        now = slots_status(parallelism=executor.parallelism, in_use=len(executor.running), ahead=ahead)
        return Explanation(
            key=name,
            state=State.WAITING,
            id=versions.assigned_celery_id(workload) or "",
            attempt=1,
            queue=versions.workload_queue(workload, "default"),
            priority=priority,
            moves=(),
            now=now,
        )

    def _with_workers(self, explanation: Explanation) -> Explanation:
        """Add what the leases and the replies of the workers say of a workload that is at the broker."""
        if explanation.now.waits_for is not WaitReason.START or explanation.queue is None:
            return explanation
        worker = self._cluster.worker_with(explanation.id)
        capacity = self._cluster.capacity()
        slots = None if capacity is None else capacity.get(explanation.queue, 0)
        return replace(explanation, now=place_status(explanation.now, explanation.queue, worker, slots))


def slots_status(*, parallelism: int, in_use: int, ahead: int) -> CurrentStatus:
    """Return what a workload in Airflow's queue waits for: a slot, or the next heartbeat."""
    if not parallelism or in_use < parallelism:
        words = "waiting: sent by one of the next heartbeats"
        return CurrentStatus(waits_for=WaitReason.HEARTBEAT, words=words)
    urgent = f"; {ahead:,} more urgent before it" if ahead else ""
    words = f"waiting: all {parallelism:,} slots of [core] parallelism are in use{urgent}"
    facts: dict[str, int | float | str] = {"parallelism": parallelism, "in_use": in_use, "ahead": ahead}
    return CurrentStatus(waits_for=WaitReason.SLOTS, words=words, facts=facts)


def place_status(now: CurrentStatus, queue: str, worker: str | None, slots: int | None) -> CurrentStatus:
    """Return the status of a workload at the broker, with its worker, or else with the slots of its queue's workers.

    `slots` is None while the workers are not known.
    """
    if worker is not None:
        words = f"{now.words}; worker {worker} has received it, and has not reported that it started"
        return CurrentStatus(waits_for=now.waits_for, words=words, facts={**now.facts, "worker": worker})
    if slots is None:
        return now
    if slots == 0:
        words = f"{now.words}; no live worker serves queue {queue!r}"
        return CurrentStatus(waits_for=WaitReason.WORKERS, words=words, facts=now.facts)
    text = "1 slot" if slots == 1 else f"{slots:,} slots"
    words = f"{now.words}; the live workers of its queue have {text}"
    return CurrentStatus(waits_for=now.waits_for, words=words, facts={**now.facts, "slots": slots})


def names_of(workload: Any) -> tuple[str, ...]:
    """Return the names that a request may give a workload: its Celery id, and the id of its row."""
    celery_id = versions.assigned_celery_id(workload)
    row = (str(workload.ti.id),) if isinstance(workload, versions.TASK) else ()
    return row if celery_id is None else (celery_id, *row)


class ExplainChannel:
    """A mailbox for the questions of other processes, over the broker.

    A thread of its own talks to the broker. The scheduler's thread answers.
    """

    def __init__(self, cluster: Cluster, explainer: Explainer, *, timeout: float) -> None:
        self._explainer = explainer
        self._left = MAX_ANSWERS
        is_reachable = has_mailboxes(cluster.app)
        self._server = BrokerControlServer(cluster.app, wake=do_nothing, timeout=timeout) if is_reachable else None

    def answer(self) -> None:
        """Answer the requests since the last call, from memory."""
        if self._server is None:
            return
        self._left = MAX_ANSWERS
        for pending in self._server.requests.take_requests():
            self._server.requests.reply(pending, self._reply(pending))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _reply(self, pending: PendingRequest) -> Reply:
        match pending.request:
            case ExplainRequest() if self._left <= 0:
                return ErrorReply("has too many requests: ask again later")
            case ExplainRequest(name=name, others=others):
                names = (name, *others)[: self._left]
                self._left -= len(names)
                explanations = map(self._explainer.explain, names)
                return ExplainReply(tuple(each for each in explanations if each is not None))
            case CancelRequest(names=names, queues=queues):  # Airflow's own pages end its tasks
                unknown = tuple(CancelResult(name=name, outcome=CancelOutcome.UNKNOWN) for name in names)
                return CancelReply(fates=unknown, emptied=dict.fromkeys(queues, 0))
            case OwnerRequest(run=run):
                return ErrorReply(f"this executor does not own run {run!r}")
            case DemandRequest():  # its workers are Airflow's, and Airflow's own tools start them
                return DemandReply(waiting={}, open_slots=0)
        return PriorityReply(PriorityOutcome.UNKNOWN)


def do_nothing() -> None:
    """Wake no thread: the scheduler's next heartbeat comes by itself."""
