"""`celeriac worker`, once its settings are known: a Celery worker that takes no message it cannot start.

    broker ─► Celery's consumer ─► CommandPool (or Celery's prefork) ─► task ─► Runner ─► supervisor ─► command
    TERM, remote revoke ─► ShutdownCoordinator, RemoteControlStep ─► PoolControl ─► Runner

On TERM the worker takes no more messages and lets running commands finish, up to a deadline.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from celery import Celery

from celeriac.backend.outputs import output_store_for
from celeriac.config.settings import Settings, WorkerSettings, scheme_of
from celeriac.config.signing import SigningKeys
from celeriac.errors import InvalidConfig
from celeriac.sink_thread import Sink, sending
from celeriac.worker.acks import request_class
from celeriac.worker.app import worker_app
from celeriac.worker.build import build_worker, open_parts, run_worker
from celeriac.worker.consumer import Worker
from celeriac.worker.gate import Gate
from celeriac.worker.log import begin_log, logger
from celeriac.worker.machine import NO_MACHINE, machine_of
from celeriac.worker.open_files import check_open_files
from celeriac.worker.outcome import HOST
from celeriac.worker.output import OutputPolicy
from celeriac.worker.parts import WorkerParts
from celeriac.worker.pool import CommandPool, ProcessPool
from celeriac.worker.pool_control import PreforkControl, ThreadPoolControl
from celeriac.worker.resource_room import ResourceRoom
from celeriac.worker.start_hold import start_hold_for
from celeriac.worker.supervisor.resources import (
    LEAST_OF_WORKER,
    allow_open_files,
    commands_that_fit,
    hard_limit,
)
from celeriac.worker.task import leave_places, log_task_events, register_worker_task

DESCRIPTORS_PER_THREAD = 3  # in the worker: a channel to the supervisor, and connections to the result backend


def work(
    settings: Settings,
    sinks: Sequence[Sink] = (),
    *,
    check: Callable[[], None] = lambda: None,
    beside: Callable[[Worker], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Run a worker until a signal ends it, in the context that `beside` returns. The sinks send what it measures.
    `check` may log warnings: the log has begun when it is called. Raises `InvalidInput`."""
    worker_settings, connection = settings.worker, settings.connection
    begin_log(worker_settings.log_format, worker_settings.log_level)
    check()
    in_threads = worker_settings.pool == "threads"
    app = worker_app(connection, in_threads=in_threads)
    pool_control: ThreadPoolControl | PreforkControl = ThreadPoolControl() if in_threads else PreforkControl()
    # Processes cannot wait for resources together, so a pool of them has none.
    shares = (worker_settings.cpus, worker_settings.memory, worker_settings.gpus)
    resources = ResourceRoom(machine_of(*shares) if in_threads else NO_MACHINE)
    with open_parts(
        app,
        pool_control,
        operation_timeout=connection.operation_timeout,
        grace=worker_settings.grace,
        keys=SigningKeys.of(connection.signing_key),
        gate=Gate(max_size=worker_settings.max_message_size),
        is_strict=worker_settings.strict_lease,
        idle_exit=worker_settings.idle_exit,
        start_hold=start_hold_for(worker_settings.max_load, worker_settings.min_free_memory),
        resources=resources,
    ) as parts:
        if parts.lease_manager is not None:
            pool_control.runner.renewed_at = parts.lease_manager.renewed_at
        register_worker_task(
            app,
            pool_control.runner,
            output_policy(worker_settings),
            verifier=parts.verifier,
            lease_manager=parts.lease_manager,
            takes_no_more=lambda: parts.shutdown.is_shutting_down or parts.pause.is_on,
            request_class=request_class(parts.acks, parts.measures, partial(leave_places, parts.lease_manager)),
            outputs=output_store_for(app, timeout=connection.operation_timeout),
            start_hold=parts.start_hold,
            resources=resources,
        )
        log_task_events()
        worker = make_worker(app, worker_settings, parts)
        if parts.lease_manager is None:
            logger.warning(
                "a result backend of kind %r cannot hold claims: a message that is delivered twice runs twice",
                scheme_of(app.conf.result_backend),
            )
        with sending(sinks, parts.measures.telemetry), beside(worker):
            run_worker(worker)


def make_worker(app: Celery, settings: WorkerSettings, parts: WorkerParts) -> Worker:
    """Return the worker that the settings describe. Raises `InvalidConfig` for a broker that it cannot use."""
    app.log.already_setup = True  # Celery's children would configure logging of their own
    in_threads = settings.pool == "threads"
    name = settings.name or f"celeriac-{os.getpid()}"
    return build_worker(
        app,
        parts,
        hostname=name if "@" in name else f"{name}@{HOST}",
        unsupported_broker=unsupported_broker,
        pool=CommandPool if in_threads else ProcessPool,
        concurrency=concurrency_that_fits(settings.concurrency) if in_threads else settings.concurrency,
        autoscale=settings.autoscale,
        queues=list(settings.queues),
        without_gossip=True,
        without_mingle=True,
    )


def concurrency_that_fits(concurrency: int) -> int:
    """Return the number of threads, fewer if the limit of open files cannot be raised for all of them.

    Raises `InvalidConfig` for a limit that is too low for one."""
    if (warning := check_open_files(concurrency, supervisors=1, least=LEAST_OF_WORKER)) is not None:
        logger.warning(warning)
    allow_open_files(DESCRIPTORS_PER_THREAD * concurrency)
    return int(min(concurrency, commands_that_fit(hard_limit(), supervisors=1)))


def unsupported_broker(kind: str) -> InvalidConfig:
    return InvalidConfig("broker", f"a worker cannot use a broker of kind {kind!r}", "give Redis, Valkey or RabbitMQ")


def output_policy(settings: WorkerSettings) -> OutputPolicy:
    """Return where to keep output. Raises `InvalidConfig` for a folder that cannot be written."""
    if settings.output is None:
        return OutputPolicy()
    folder = Path(settings.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidConfig("output", f"{folder}: {error.strerror}", "name a folder to write in") from None
    return OutputPolicy(directory=folder.absolute())
