"""Build a worker, and run it: for `celeriac worker` and for `airflow celeriac worker`.

open_parts ─► WorkerParts ─► register the task ─► build_worker ─► run_worker
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from celery import Celery

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.open import places_for
from celeriac.backend.refused import refused_store_for
from celeriac.broker.broker_list import ReturnToFirst
from celeriac.broker.deadline_thread import DeadlineThread
from celeriac.broker.queues import LONG_COMMANDS, set_up_queues
from celeriac.config.masking import masked
from celeriac.config.settings import AMQP_SCHEMES, scheme_of
from celeriac.config.signing import SigningKeys
from celeriac.errors import InvalidConfig, describe_error
from celeriac.server_errors import ServerProblem, is_client_error, problem_of, remedy_for
from celeriac.surviving_loop import Survivor
from celeriac.telemetry import Telemetry
from celeriac.worker.acks import Acks, AckStep
from celeriac.worker.celery_internals import prepare_tracing
from celeriac.worker.consumer import PoolStartedStep, RemoteControlStep, WatchedConsumer, Worker
from celeriac.worker.gate import Gate
from celeriac.worker.intake import Intake
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.log import drop_noise_of_libraries, log_event
from celeriac.worker.measures import WorkerMeasures
from celeriac.worker.parts import WorkerParts
from celeriac.worker.pause import WorkerPause
from celeriac.worker.pool_control import PoolControl
from celeriac.worker.probe import server_of
from celeriac.worker.refusals import Refusals
from celeriac.worker.resource_room import ResourceRoom
from celeriac.worker.shutdown import ShutdownCoordinator
from celeriac.worker.shutdown_steps import Request
from celeriac.worker.signals import signals_to
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.start_hold import StartHold

RETURN_TIMEOUT = 2.0  # seconds for one attempt to return to an earlier broker of the list
CHECK_TIMEOUT = 5.0  # seconds for the result backend to reply before the worker starts
CHECK_THREAD = "celeriac-check"


@contextmanager
def open_parts(
    app: Celery,
    pool_control: PoolControl,
    *,
    operation_timeout: float,
    grace: float,
    keys: SigningKeys | None,
    gate: Gate,
    log_refusal: Callable[..., None] = log_event,
    backend_setting: str = "backend",
    is_strict: bool = False,
    track_started: bool = True,
    idle_exit: float | None = None,
    start_hold: StartHold | None = None,
    resources: ResourceRoom | None = None,
) -> Iterator[WorkerParts]:
    """Make the parts of a worker. At the end, close the pool control, and then end the lease.

    `operation_timeout`, in seconds, bounds one operation on the claims. `ShutdownCoordinator` explains `grace` and
    `idle_exit`, `LeaseManager` explains `is_strict` and `track_started`, and `Refusals` explains `log_refusal`.
    The worker's task has to ask `start_hold` and `resources`, if there are any.

    Raises `InvalidConfig` for `backend_setting` if the result backend refuses this worker for good.
    """
    lease_manager: LeaseManager | None = None
    refusals = Refusals(refused_store_for(app, timeout=operation_timeout), log_refusal)
    acks = Acks()
    try:
        check_store(app, operation_timeout, backend_setting)
        lease_manager = lease_manager_for(
            app, pool_control, operation_timeout, is_strict=is_strict, track_started=track_started
        )
        yield WorkerParts(
            pool_control=pool_control,
            acks=acks,
            intake=Intake(gate, refusals, acks),
            refusals=refusals,
            verifier=SignatureVerifier(keys, gate.task_name, refusals),
            lease_manager=lease_manager,
            shutdown=ShutdownCoordinator(pool_control, grace, lease_manager, idle_exit=idle_exit),
            pause=WorkerPause(),
            measures=WorkerMeasures(Telemetry()),
            start_hold=start_hold,
            resources=resources,
        )
    finally:
        pool_control.close()
        if lease_manager is not None:
            lease_manager.end_lease()
        refusals.close()


def check_store(app: Celery, timeout: float, setting: str) -> None:
    """Raise `InvalidConfig` if the result backend refuses this worker for good. A worker waits for any other one."""
    claims = claims_for(app, timeout=timeout)
    if claims is None:
        return
    try:
        with Survivor(CHECK_THREAD).guard(is_client_error), closing(DeadlineThread[None](CHECK_THREAD)) as thread:
            thread.call(claims.check_rights, CHECK_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - what may be wrong later, too, is handled there
        if problem_of(error) is ServerProblem.REFUSED:
            problem = f"{masked(app.conf.result_backend)} refuses: {describe_error(error).rstrip('.')}"
            raise InvalidConfig(setting, problem, remedy_for(error) or "see the log of the server") from None
    with contextlib.suppress(Exception):
        claims.close()  # a child must not share these connections


def lease_manager_for(
    app: Celery, pool_control: PoolControl, timeout: float, *, is_strict: bool, track_started: bool
) -> LeaseManager | None:
    """Return the lease manager; None if the result backend cannot hold claims."""
    claims = claims_for(app, timeout=timeout)
    if claims is None:
        return None
    return LeaseManager(
        claims,
        pool_control,
        server=server_of(app),
        is_strict=is_strict,
        track_started=track_started,
        places=partial(places_for, app, timeout=timeout),
    )


def build_worker(
    app: Celery,
    parts: WorkerParts,
    *,
    hostname: str,
    unsupported_broker: Callable[[str], Exception],
    worker_class: type[Worker] = Worker,
    **options: Any,
) -> Worker:
    """Return a worker that is ready to run. `options` are options of Celery's worker.

    `unsupported_broker` returns the error to raise for a kind of broker that no event loop can wait for.
    """
    if scheme_of(app.conf.broker_url) in AMQP_SCHEMES:
        set_up_queues(app, consumer_arguments=LONG_COMMANDS)
        app.conf.worker_enable_prefetch_count_reduction = False  # `Prefetch` does it
    drop_noise_of_libraries()
    app.steps["worker"].add(PoolStartedStep)
    app.steps["consumer"].update((RemoteControlStep, AckStep))
    prepare_tracing(app, hostname)
    worker = worker_class(app=app, hostname=hostname, parts=parts, consumer_cls=WatchedConsumer, **options)
    parts.measures.watch(worker)
    if worker.hub is None:
        raise unsupported_broker(scheme_of(app.conf.broker_url))
    return worker


def run_worker(worker: Worker) -> None:
    """Run a worker until SIGTERM, Ctrl-C, SIGQUIT, or a remote shutdown."""
    shutdown = worker.parts.shutdown
    with (
        signals_to(partial(shutdown.request, Request.TERM)),
        signals_to(partial(shutdown.request, Request.QUIT), [signal.SIGQUIT]),
        closing(ReturnToFirst(worker.app, timeout=RETURN_TIMEOUT)),
    ):
        shutdown.watch(worker)
        worker.start()
