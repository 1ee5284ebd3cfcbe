"""What a worker's child does with one workload.

message ─► claimed ─► Airflow's supervisor ─► ended: Celery's SUCCESS, or FAILURE if the supervisor itself broke
       │                                  ├─► REVOKED, if it was called back
       │                                  └─► lost, or nothing at all, if it is not this worker's any more
       ├─► dropped: it came twice, or was called back
       └─► handed back: the worker is going
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from airflow.executors import workloads
from celery import Celery
from celery.exceptions import Ignore
from pydantic import TypeAdapter, ValidationError

from celeriac.airflow.claim_takeover import claim_or_inherit
from celeriac.airflow.config import signed_part
from celeriac.airflow.prefork_control import WorkloadPoolControl, request_class, term_can_wait, term_is_for_the_task
from celeriac.config.signing import HEADER, SIGNATURE
from celeriac.errors import CommandFailed
from celeriac.task.result import Reason
from celeriac.worker.acks import Acks
from celeriac.worker.execute_command import admit
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.outcome import not_run
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.task import hand_back, token_of

TASK_NAME = "execute_workload"

log = logging.getLogger(__name__)


def register_workload_task(
    app: Celery,
    children: WorkloadPoolControl,
    acks: Acks,
    keeper: LeaseManager | None,
    guard: SignatureVerifier,
    run_workload: Callable[[Any], None],
) -> None:
    """Teach a worker's app to execute workloads. `run_workload` raises what keeps the supervisor from reporting one."""
    decoder = workload_decoder()

    def execute_workload(task: Any, message: str) -> None:
        with term_can_wait():
            admit(guard, signed_message(task.request, message), task.request.id)
            unless_revoked(task, children)
            begin(task, children, keeper)
            unless_revoked(task, children)
            run_to_its_end(task.request.id, decoded(decoder, message), children, run_workload)
            unless_revoked(task, children)
            unless_lost(task, children, keeper)

    options: dict[str, Any] = {"bind": True, "shared": False, "throws": (CommandFailed,)}
    if keeper is not None:
        options["track_started"] = False  # the claim says that it has begun
    app.task(name=TASK_NAME, Request=request_class(acks, children), **options)(execute_workload)


def begin(task: Any, children: WorkloadPoolControl, keeper: LeaseManager | None) -> None:
    names = {"id": task.request.id}
    if children.is_going:
        hand_back(names, say)
    if keeper is None:
        return
    answer, start_by = claim_or_inherit(keeper, children, task)
    token_of(answer, names, say)
    if time.monotonic() >= start_by and not keeper.still_owns(task.request.id, lambda: children.is_going):
        say("dropped", **names, why="its worker was taken for dead meanwhile")
        raise Ignore


def signed_message(request: Any, text: str) -> dict[str, Any]:
    said = request.get(HEADER)
    return {**signed_part(request.id, text), **({} if said is None else {SIGNATURE: said})}


def run_to_its_end(
    task_id: str, workload: Any, children: WorkloadPoolControl, run_workload: Callable[[Any], None]
) -> None:
    log.info("[%s] %s", task_id, name_of(workload))
    with unless_elsewhere(task_id), children.at_work():
        try:
            with term_is_for_the_task():
                if not children.was_told_to_end(task_id):
                    run_workload(workload)
        except Exception:  # whatever a supervisor makes of being told to end
            if not children.was_told_to_end(task_id):
                raise


def unless_revoked(task: Any, children: WorkloadPoolControl) -> None:
    if children.is_revoked(task.request.id):
        children.forget(task.request.id)
        task.backend.mark_as_revoked(task.request.id, "revoked", request=task.request)
        raise Ignore


def unless_lost(task: Any, children: WorkloadPoolControl, keeper: LeaseManager | None) -> None:
    """What became of it is not this worker's to say once others have taken it for dead."""
    task_id = task.request.id
    if children.is_superseded(task_id):
        children.forget(task_id)
        say("ended", id=task_id, why="its worker was taken for dead")
        raise Ignore
    if children.was_silenced and keeper is not None:
        say("ended", id=task_id, why="its worker was silent")
        if not keeper.still_owns(task_id, lambda: children.is_going):
            raise Ignore
        raise CommandFailed(not_run(Reason.LOST, "its worker was silent for too long, and ended it"))


@contextmanager
def unless_elsewhere(task_id: str) -> Iterator[None]:
    """A message that came twice: the other worker stores what comes of it."""
    try:
        yield
    except already_running_errors():
        say("dropped", id=task_id, why="it runs already, on another worker")
        raise Ignore from None


def say(event: str, *, id: str, why: str | None = None, reason: str | None = None) -> None:
    log.info("[%s] %s", id, ": ".join(word for word in (event, why or reason) if word))


def decoded(decoder: TypeAdapter[Any], message: str) -> Any:
    try:
        return decoder.validate_json(message)
    except ValidationError as error:  # whose own words quote the message, token included
        wrongs = {f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors(include_input=False)}
        raise ValueError(f"not a workload of this version of Airflow: {'; '.join(sorted(wrongs))}") from None


def name_of(workload: Any) -> str:
    """What may be logged: never the token."""
    kind = type(workload).__name__
    if isinstance(workload, workloads.ExecuteTask):
        ti = workload.ti
        place = "" if ti.map_index is None or ti.map_index < 0 else f" [{ti.map_index}]"
        return f"{kind} {ti.dag_id}.{ti.task_id}{place} {ti.run_id} try {ti.try_number}"
    return kind


# — where Airflow's versions differ —


def workload_decoder() -> TypeAdapter[Any]:
    return TypeAdapter(getattr(workloads, "ExecutorWorkload", None) or workloads.All)


def already_running_errors() -> tuple[type[Exception], ...]:
    """From 3.1.9 on the API server says so in a way of its own."""
    try:
        from airflow.sdk.exceptions import TaskAlreadyRunningError
    except ImportError:
        return ()
    return (TaskAlreadyRunningError,)
