"""The Celery task by which a child of the worker runs one workload.

message ─► claimed ─► Airflow's supervisor ─► ended: SUCCESS, or FAILURE if the supervisor itself failed
       │                                  ├─► REVOKED, if it was revoked
       │                                  ├─► lost, or no result at all if this worker does not own the task any more
       │                                  ├─► killed: a signal from outside has ended the task
       │                                  └─► handed back: the API server did not let it start
       ├─► dropped: delivered twice, or revoked, or Airflow has its task instance in another state
       └─► handed back: the worker is shutting down
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from airflow.executors import workloads
from celery import Celery
from celery.exceptions import Ignore, Reject
from pydantic import TypeAdapter, ValidationError

from celeriac.airflow.api_server import ApiServerWait, MovedOn, NotStarted
from celeriac.airflow.claim_takeover import claim_or_take_over
from celeriac.airflow.config import shown_arguments, signed_content
from celeriac.airflow.prefork_control import WorkloadPoolControl, forward_term, ignore_term
from celeriac.airflow.request import request_class
from celeriac.airflow.stats import stats_client
from celeriac.airflow.task_end import TaskEnd
from celeriac.airflow.worker_versions import already_running_errors, workload_decoder
from celeriac.airflow.workload_names import WorkloadNames
from celeriac.config.signing import HEADER, SIGNATURE
from celeriac.errors import CommandFailed
from celeriac.log_lines import logger_for
from celeriac.task.result import Reason
from celeriac.worker.execute_command import admit
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.outcome import not_run
from celeriac.worker.parts import WorkerParts
from celeriac.worker.task import claim_refused, hand_back, release_claim, token_of

TASK_NAME = "execute_workload"

log = logger_for(__name__)


def register_workload_task(
    app: Celery,
    pool_control: WorkloadPoolControl,
    parts: WorkerParts,
    api_server: ApiServerWait,
    run_workload: Callable[[Any], None],
    *,
    names: WorkloadNames,
    task_end: TaskEnd,
) -> None:
    """Register the task that runs workloads with the worker's app.

    `run_workload` runs a workload to its end. It raises the errors that keep the supervisor from reporting the end to
    Airflow.
    """
    decoder, lease_manager = workload_decoder(), parts.lease_manager

    def execute_workload(task: Any, message: str) -> None:
        names.remember(task.request.id, message)
        with ignore_term():
            signed = signed_message(task.request, message)
            admit(
                parts.verifier,
                signed,
                task.request,
                partial(claim_refused, task, lease_manager, lambda: pool_control.is_shutting_down, log_event),
            )
            ignore_if_revoked(task, pool_control)
            claim(task, pool_control, lease_manager)
            ignore_if_revoked(task, pool_control)
            workload = decode_workload(decoder, message)
            task_end.begin(partial(pool_control.why_ended, task.request.id))
            try:
                run_to_end(task.request.id, workload, pool_control, api_server, run_workload)
            except NotStarted as failure:
                hand_back_unstarted(task, workload, lease_manager, failure)
            except MovedOn as refusal:
                log_event("dropped", id=task.request.id, why=str(refusal))
                raise CommandFailed(not_run(Reason.LOST, f"it did not start: {refusal}")) from None
            ignore_if_revoked(task, pool_control)
            fail_if_lost(task, pool_control, lease_manager)
            task_end.raise_if_killed()

    options: dict[str, Any] = {"bind": True, "shared": False, "throws": (CommandFailed,)}
    if lease_manager is not None:
        options["track_started"] = False  # the claim stores STARTED
    request = request_class(parts, pool_control, names)
    app.task(name=TASK_NAME, Request=request, **options)(execute_workload)


def claim(task: Any, pool_control: WorkloadPoolControl, lease_manager: LeaseManager | None) -> None:
    """Claim the task. Raises `Ignore` for a message to drop, and `Reject` for a message to hand back."""
    labels = {"id": task.request.id}
    if pool_control.is_shutting_down:
        hand_back(labels, log_event)
    if lease_manager is None:
        return
    reply, start_by = claim_or_take_over(lease_manager, pool_control, task)
    token_of(reply, labels, log_event)
    if time.monotonic() >= start_by and not lease_manager.still_owns(
        task.request.id, lambda: pool_control.is_shutting_down
    ):
        log_event("dropped", **labels, why="its worker was declared dead meanwhile")
        raise Ignore


def signed_message(request: Any, text: str) -> dict[str, Any]:
    """Return the message that `SignatureVerifier` checks. The signature of a workload is in a header."""
    signature = request.get(HEADER)
    return {**signed_content(request.id, text), **({} if signature is None else {SIGNATURE: signature})}


def run_to_end(
    task_id: str,
    workload: Any,
    pool_control: WorkloadPoolControl,
    api_server: ApiServerWait,
    run_workload: Callable[[Any], None],
) -> None:
    """Run a workload to its end. Raises `NotStarted` if the API server did not let it start."""
    log.info("[%s] started: %s", task_id, type(workload).__name__)
    with ignore_if_already_running(task_id), pool_control.watched_by_reaper():
        try:
            with forward_term():
                if not pool_control.must_end(task_id):
                    api_server.begin(
                        task_id,
                        workload,
                        must_end=lambda: pool_control.must_end(task_id),
                        is_shutting_down=lambda: pool_control.is_shutting_down,
                    )
                    run_workload(workload)
        except Exception as error:  # a supervisor that must end may raise any error
            if not pool_control.must_end(task_id):
                api_server.raise_if_not_started(error, workload)
                if not isinstance(error, already_running_errors()):
                    stats_client().incr("celery.execute_command.failure")
                raise


def hand_back_unstarted(task: Any, workload: Any, lease_manager: LeaseManager | None, failure: NotStarted) -> NoReturn:
    """Hand back a workload that has not started. It uses up no try.

    Celeriac's executor sends a lost task again, with a new token, if Airflow's database still has it as queued. Any
    other executor needs the message itself back. With an expired token the message is of no use: it is dropped, and
    Airflow's scheduler queues the task again when its `task_queued_timeout` has passed.
    """
    labels = {"id": task.request.id}
    if was_sent_by_celeriac(task.request, workload):
        log_event("handed back", **labels, why=str(failure))
        raise CommandFailed(not_run(Reason.LOST, f"it did not start: {failure}")) from None
    if lease_manager is not None:
        release_claim(lease_manager, task, failure, log_event, revoked="revoked before it started")
    if failure.token_has_expired:
        log_event("dropped", **labels, why=str(failure))
        raise Ignore from None
    log_event("handed back", **labels, why=str(failure))
    raise Reject(str(failure), requeue=True) from None


def was_sent_by_celeriac(request: Any, workload: Any) -> bool:
    """Return whether Celeriac's executor sent this task: only it shows the arguments of a message without the token."""
    return isinstance(workload, workloads.ExecuteTask) and request.argsrepr == shown_arguments(workload)


def ignore_if_revoked(task: Any, pool_control: WorkloadPoolControl) -> None:
    """Store REVOKED and raise `Ignore` if the workload was revoked."""
    if pool_control.is_revoked(task.request.id):
        pool_control.remove_markers(task.request.id)
        task.backend.mark_as_revoked(task.request.id, "revoked", request=task.request)
        raise Ignore


def fail_if_lost(task: Any, pool_control: WorkloadPoolControl, lease_manager: LeaseManager | None) -> None:
    """Raise `CommandFailed` if the worker fell silent, and `Ignore` if it does not own the task any more.

    Once the worker is declared dead, others decide the result of the task.
    """
    task_id = task.request.id
    if pool_control.is_superseded(task_id):
        pool_control.remove_markers(task_id)
        log_event("ended", id=task_id, why="its worker was declared dead")
        raise Ignore
    if pool_control.was_reaped and lease_manager is not None:
        log_event("ended", id=task_id, why="its worker was silent")
        if not lease_manager.still_owns(task_id, lambda: pool_control.is_shutting_down):
            raise Ignore
        raise CommandFailed(not_run(Reason.LOST, "its worker was silent for too long, and ended it"))


@contextmanager
def ignore_if_already_running(task_id: str) -> Iterator[None]:
    """Raise `Ignore` if the API server reports that the task runs: the other worker stores its result."""
    try:
        yield
    except already_running_errors():
        log_event("dropped", id=task_id, why="it runs already, on another worker")
        raise Ignore from None


def log_event(event: str, *, id: str, why: str | None = None, reason: str | None = None) -> None:
    log.info("[%s] %s", id, ": ".join(part for part in (event, why or reason) if part))


def decode_workload(decoder: TypeAdapter[Any], message: str) -> Any:
    """Return the workload in a message. Raises `ValueError` without the message, which holds a token."""
    try:
        return decoder.validate_json(message)
    except ValidationError as error:
        details = error.errors(include_input=False)
        problems = sorted({f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in details})
        raise ValueError(f"not a workload of this version of Airflow: {'; '.join(problems)}") from None
