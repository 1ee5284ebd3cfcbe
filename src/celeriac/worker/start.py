"""`celeriac worker`, once its settings are known: a Celery worker that takes nothing it cannot start.

    broker ─► Celery's consumer ─► CommandPool (or Celery's prefork) ─► duty ─► Runner ─► supervisor ─► command
    TERM, remote revoke ─► Warden, Revokes ─► Hands ─► Runner

On TERM the worker takes nothing more and lets what runs finish, up to a deadline.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from celery import Celery
from celery.app.trace import setup_worker_optimizations
from celery.concurrency.prefork import TaskPool as ProcessPool

from celeriac.backend.claims import claims_for
from celeriac.backend.results import plain_pickle
from celeriac.broker.app import REDIS_PRIORITIES, app_for
from celeriac.config.settings import AMQP_SCHEMES, REDIS_SCHEMES, Connection, Settings, WorkerSettings, scheme_of
from celeriac.config.signing import SigningKeys
from celeriac.errors import InvalidConfig
from celeriac.worker.acks import Acks, AckStep, request_class
from celeriac.worker.consumer import Revokes, WatchedConsumer, Worker
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.log import begin_log, logger
from celeriac.worker.outcome import HOST
from celeriac.worker.output import OutputPolicy
from celeriac.worker.pool import CommandPool
from celeriac.worker.pool_control import PoolControl, PreforkControl, ThreadPoolControl
from celeriac.worker.probe import place_of
from celeriac.worker.shutdown import ShutdownCoordinator
from celeriac.worker.signals import signals_to
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.task import log_task_events, register_worker_task

SOCKET_TIMEOUT = 5.0  # seconds; longer than Kombu lets Redis wait for a message, which is one
HEALTH_CHECK = 5.0  # seconds between two PINGs
HEARTBEAT = 10.0  # seconds, of AMQP
POOL_PATIENCE = 24 * 3600  # seconds that a thread waits for a connection: a database that is away has them all
VISIBILITY_TIMEOUT = 24 * 3600  # seconds until Redis gives a message to another worker, whether it still runs or not
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def work(settings: Settings) -> None:
    """Work until a signal says otherwise. Raises `InvalidInput`."""
    worker_settings, connection = settings.worker, settings.connection
    begin_log(worker_settings.log_format, worker_settings.log_level)
    hands: ThreadPoolControl | PreforkControl = (
        ThreadPoolControl() if worker_settings.pool == "threads" else PreforkControl()
    )
    keeper: LeaseManager | None = None
    try:
        app = worker_app(connection, in_threads=worker_settings.pool == "threads")
        keeper = keeper_for(app, hands, connection.operation_timeout, is_strict=worker_settings.strict_lease)
        hands.runner.has_lease = keeper is not None
        warden = ShutdownCoordinator(hands, worker_settings.grace, keeper)
        acks = Acks()
        guard = SignatureVerifier(SigningKeys.of(connection.signing_key))
        register_worker_task(
            app,
            hands.runner,
            output_policy(worker_settings),
            verifier=guard,
            lease_manager=keeper,
            is_shutting_down=lambda: warden.is_going,
            request_class=request_class(acks),
        )
        log_task_events()
        worker = make_worker(app, worker_settings, hands, warden, acks, keeper, guard)
        if keeper is None:
            kind = scheme_of(app.conf.result_backend)
            logger.warning("a result backend of kind %r keeps no claims: what is delivered twice runs twice", kind)
        with signals_to(warden.request_shutdown):
            warden.watch(worker)
            worker.start()
    finally:
        hands.close()
        if keeper is not None:
            keeper.end_lease()


def keeper_for(
    app: Celery, hands: PoolControl, timeout: float, *, is_strict: bool = False, track_started: bool = True
) -> LeaseManager | None:
    """None if the result backend can keep no claims: then a message that comes twice is run twice."""
    claims = claims_for(app, timeout=timeout)
    if claims is None:
        return None
    return LeaseManager(claims, hands, store=place_of(app.backend), is_strict=is_strict, track_started=track_started)


def worker_app(connection: Connection, *, in_threads: bool = False) -> Celery:
    """With a connection that notices when it is dead, and results that are tried again until they are stored."""
    settings = {**lasting_settings(), "broker_transport_options": transport_options(connection.broker)}
    app = app_for(connection, **settings)
    keep_trying(app)
    if in_threads:
        share_connections(app)
    return app


def lasting_settings() -> dict[str, Any]:
    return {
        "broker_connection_max_retries": None,
        "broker_heartbeat": HEARTBEAT,
        "result_backend_always_retry": True,
        "result_backend_max_retries": float("inf"),  # a database's would be 3
        "worker_send_task_events": True,
        "worker_deduplicate_successful_tasks": True,
    }


def keep_trying(app: Celery) -> None:
    """Celery before 5.7 asks a database that is away three times, at once, and then forgets the result."""
    if not scheme_of(app.conf.result_backend).startswith("db+"):
        return
    from celery.backends.database import DatabaseBackend
    from sqlalchemy.exc import DatabaseError

    make_backend = app._get_backend

    def lasting_backend() -> Any:
        backend = make_backend()
        if isinstance(backend, DatabaseBackend):
            if "exception_safe_to_retry" not in vars(DatabaseBackend):
                backend.exception_safe_to_retry = lambda error: isinstance(error, DatabaseError)
            unpickle_plain_data_alone(backend)
        return backend

    app._get_backend = lasting_backend
    app._local.__dict__.pop("backend", None)  # this thread, and children forked from it, may have one already


def share_connections(app: Celery) -> None:
    """Between the threads of a pool: Celery, where it has not forked, connects to a database anew for every result."""
    manager = getattr(app.backend, "session_manager", None)
    if manager is None:
        return
    manager.forked = True  # then it keeps what it has
    manager.invalidate = lambda _: None  # of Celery 5.7, for one thread; a dead connection is noticed before it is used
    make_backend = app._get_backend

    def sharing_backend() -> Any:
        backend = make_backend()
        backend.engine_options["pool_timeout"] = POOL_PATIENCE
        backend.session_manager = manager
        return backend

    app._get_backend = sharing_backend
    app._local.__dict__.pop("backend", None)


def unpickle_plain_data_alone(backend: Any) -> None:
    """Else Celery, in a worker that takes JSON alone, runs what somebody has written into the database."""
    if plain_pickle.PICKLE in backend.accept:
        return
    column = backend.task_cls.__table__.c.result.type
    if hasattr(column, "pickler"):  # before Celery 5.7
        column.pickler = plain_pickle
    else:
        backend._decode_stored_result = lambda value: plain_pickle.decode(value, backend.decode)


def transport_options(broker: str) -> dict[str, Any]:
    priorities = REDIS_PRIORITIES if scheme_of(broker) in REDIS_SCHEMES else {}
    return {**priorities, **connection_options(broker)}


def connection_options(broker: str) -> dict[str, Any]:
    """What makes a worker's connection notice that it is dead."""
    if scheme_of(broker) in REDIS_SCHEMES:
        return {
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            "socket_keepalive": True,
            "socket_keepalive_options": {
                getattr(socket, name): value for name, value in KEEPALIVE.items() if hasattr(socket, name)
            },
            "health_check_interval": HEALTH_CHECK,
            "visibility_timeout": VISIBILITY_TIMEOUT,
        }
    if scheme_of(broker) in AMQP_SCHEMES:
        return {"read_timeout": HEARTBEAT, "write_timeout": HEARTBEAT}
    return {}


def output_policy(settings: WorkerSettings) -> OutputPolicy:
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


def make_worker(
    app: Celery,
    settings: WorkerSettings,
    hands: PoolControl,
    warden: ShutdownCoordinator,
    acks: Acks,
    keeper: LeaseManager | None,
    guard: SignatureVerifier,
) -> Worker:
    app.log.already_setup = True  # Celery's children would set up logs of their own
    app.steps["consumer"].update((Revokes, AckStep))
    name = settings.name or f"celeriac-{os.getpid()}"
    hostname = name if "@" in name else f"{name}@{HOST}"
    setup_worker_optimizations(app, hostname)
    worker = Worker(
        app=app,
        hostname=hostname,
        hands=hands,
        warden=warden,
        acks=acks,
        keeper=keeper,
        guard=guard,
        pool=CommandPool if settings.pool == "threads" else ProcessPool,
        consumer_cls=WatchedConsumer,
        concurrency=settings.concurrency,
        autoscale=settings.autoscale,
        queues=list(settings.queues),
        without_gossip=True,
        without_mingle=True,
    )
    if worker.hub is None:
        kind = scheme_of(app.conf.broker_url)
        raise InvalidConfig("broker", f"no worker can wait on {kind!r}", "give Redis, Valkey or RabbitMQ")
    return worker
