"""The Celery app: made here, handed to everyone, never looked up.

executor ─► Publisher ─► app ─► broker ─► worker (same app settings) ─► execute_command
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from kombu.exceptions import OperationalError

from celeriac.config.settings import AMQP_SCHEMES, REDIS_SCHEMES, TLS_SCHEMES, Connection, scheme_of
from celeriac.errors import CommandFailed, InvalidConfig
from celeriac.task.task import DEFAULT_QUEUE, Secret, Task

TASK_NAME = "celeriac.execute_command"

TASK_OPTIONS: dict[str, Any] = {
    "shared": False,  # else Celery gives it to every app of the process, and the first one's is what runs
    "throws": (CommandFailed,),  # an end like any other: no traceback in the worker's log
    "resultrepr_maxsize": 1,  # nobody reads that text, and making it costs more than all else around a short command
}

SETTINGS: dict[str, Any] = {
    "task_default_queue": DEFAULT_QUEUE,
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "task_track_started": True,  # RUNNING is a move of ours
    "task_acks_late": True,
    "worker_prefetch_multiplier": 1,  # what a worker holds back, nothing more urgent can overtake
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "broker_connection_retry_on_startup": True,
}

PRIORITIES = 10
REDIS_PRIORITIES: dict[str, Any] = {"priority_steps": list(range(PRIORITIES)), "queue_order_strategy": "priority"}


def app_for(connection: Connection, **settings: Any) -> Celery:
    """The app that talks to the broker and backend of the settings: with their timeouts, over TLS, through Sentinel."""
    timeout = connection.operation_timeout
    app = make_app(
        broker_url=connection.broker,
        result_backend=connection.backend,
        operation_timeout=timeout,
        **{**tls_settings(connection), **settings},
    )
    if connection.sentinel_master is not None:
        options = {"master_name": connection.sentinel_master, "sentinel_kwargs": transport_options("redis", timeout)}
        for name in ("broker_transport_options", "result_backend_transport_options"):
            app.conf[name] = {**app.conf[name], **options}
    check_kinds(app, broker=connection.broker, backend=connection.backend)
    return app


def check_kinds(app: Celery, *, broker: str, backend: str) -> None:
    """Raises `InvalidConfig` for a URL that Celery can do nothing with, or whose client is not installed."""
    with refused_as("broker", broker, "give Redis, Valkey or RabbitMQ"):
        _ = app.connection_for_write().transport
    with refused_as("backend", backend, "give Redis, Valkey, or a database as db+postgresql+psycopg://…"):
        _ = app.backend


@contextmanager
def refused_as(setting: str, url: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, ModuleNotFoundError, ImportError, ImproperlyConfigured) as error:
        if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
            raise InvalidConfig(setting, str(error), "install the extra: celeriac[redis]") from None
        raise InvalidConfig(setting, f"there is no kind {scheme_of(url)!r}", remedy) from None
    except ValueError:  # whose words may hold the password
        raise InvalidConfig(
            setting, f"is no address of kind {scheme_of(url)!r}", "check host, port and database"
        ) from None


def make_app(*, broker_url: str, result_backend: str, operation_timeout: float = 2.0, **settings: Any) -> Celery:
    """A Celery app that nothing else in the process can find. `settings` are Celery's own, and go over ours.

    `operation_timeout`, in seconds, bounds each operation on the result backend.
    """
    app = Celery("celeriac", broker=broker_url, backend=result_backend, set_as_current=False)
    app.conf.update({**SETTINGS, **backend_settings(operation_timeout), **priority_settings(broker_url, settings)})
    return app


def priority_settings(broker_url: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The caller's settings, and where they say nothing else ten levels of urgency inside the broker.

    Whoever sends and whoever works must agree on them: they say which lists of Redis, and what kind of queue in
    RabbitMQ.
    """
    if scheme_of(broker_url) in REDIS_SCHEMES:
        options = {**REDIS_PRIORITIES, **settings.get("broker_transport_options", {})}
        return {**settings, "broker_transport_options": options}
    if scheme_of(broker_url) in AMQP_SCHEMES:
        return {"task_queue_max_priority": PRIORITIES, **settings}
    return settings


def priorities_of(app: Celery) -> dict[str, Any]:
    """What an app of somebody else's must be told, so that it takes messages of every level."""
    said = {name: app.conf[name] for name in ("broker_transport_options", "task_queue_max_priority")}
    return priority_settings(app.conf.broker_url or "amqp://", {name: it for name, it in said.items() if it})


def tls_settings(connection: Connection) -> dict[str, Any]:
    """Servers must show a certificate of their name. What a URL says of TLS itself goes over this."""
    files = {"ca_certs": connection.tls_ca, "certfile": connection.tls_cert, "keyfile": connection.tls_key}
    given: dict[str, Any] = {name: path for name, path in files.items() if path is not None}
    given["cert_reqs"] = ssl.CERT_REQUIRED
    for_redis = {f"ssl_{name}": value for name, value in given.items()}
    settings: dict[str, Any] = {}
    if scheme_of(connection.broker) in TLS_SCHEMES:
        settings["broker_use_ssl"] = given if scheme_of(connection.broker) in AMQP_SCHEMES else for_redis
    if scheme_of(connection.backend) in TLS_SCHEMES:
        settings["redis_backend_use_ssl"] = for_redis
    return settings


def backend_settings(timeout: float) -> dict[str, Any]:
    """One try, and no longer than `timeout` seconds: who tries again, and when, is the executor's to say."""
    return {
        "redis_socket_timeout": timeout,
        "redis_socket_connect_timeout": timeout,
        "redis_retry_on_timeout": False,
        "result_backend_always_retry": False,
        "result_backend_transport_options": {"retry_policy": {"max_retries": 0, "timeout": timeout}},
        "database_engine_options": {"pool_pre_ping": True},
        "database_create_tables_at_setup": False,  # whoever stores first makes them; who only reads needs no server yet
    }


def errors_of(never_opened: Any) -> tuple[type[Exception], ...]:
    """What a connection's client raises when the broker cannot be reached, or hangs up."""
    return (OperationalError, OSError, *never_opened.connection_errors, *never_opened.channel_errors)


def transport_options(driver_type: str, timeout: float) -> dict[str, Any]:
    """What makes one operation of a broker's client fail after `timeout` seconds instead of waiting for ever."""
    match driver_type:
        case "redis":
            return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry_on_timeout": False}
        case "amqp":
            return {"read_timeout": timeout, "write_timeout": timeout, "confirm_publish": True}
    return {}


def message_of(task: Task) -> dict[str, Any]:
    """What a worker is told: the one argument of `celeriac.execute_command`. Plain data; secrets in the clear."""
    env = task.env
    return {
        "key": str(task.key),
        "id": task.message_id,
        "attempt": task.attempt,
        "command": task.command if isinstance(task.command, str) else list(task.command),
        "env": {name: str.__str__(value) for name, value in env.items()} if env else {},
        "secrets": [name for name, value in env.items() if isinstance(value, Secret)] if env else [],
        "cwd": task.cwd,
        "timeout": task.timeout,
        "grace": task.grace,
        "sent_at": time.time(),
    }
