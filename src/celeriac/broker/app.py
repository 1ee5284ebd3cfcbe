"""The Celery app: made here and passed to each part that needs it. No part uses Celery's current app.

executor ─► Publisher ─► app ─► broker ─► worker (same app settings) ─► execute_command
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celeriac.broker.queues import is_quorum, set_up_queues
from celeriac.broker.redis_keys import PRIORITIES
from celeriac.config.clients import check_client
from celeriac.config.postgres import engine_options
from celeriac.config.settings import AMQP_SCHEMES, REDIS_SCHEMES, TLS_SCHEMES, Connection, check_broker_list, scheme_of
from celeriac.config.urls import InvalidUrl, check_url
from celeriac.errors import CommandFailed, InvalidConfig
from celeriac.task.task import DEFAULT_QUEUE

TASK_OPTIONS: dict[str, Any] = {
    "shared": False,  # else Celery adds the task to every app of the process, and runs that of the first app
    "throws": (CommandFailed,),  # a failed command is expected: no traceback in the worker's log
    "resultrepr_maxsize": 1,  # the text is not read, and making it costs more than the rest of a short task
}

SETTINGS: dict[str, Any] = {
    "task_default_queue": DEFAULT_QUEUE,
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "task_track_started": True,  # for the state RUNNING
    "task_acks_late": True,
    "worker_prefetch_multiplier": 1,  # an urgent task cannot overtake messages that a worker has prefetched
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "broker_connection_retry_on_startup": True,
}

PRIORITY_SETTINGS = ("broker_transport_options", "task_queue_max_priority", "task_default_queue_type")
REDIS_PRIORITIES: dict[str, Any] = {"priority_steps": list(range(PRIORITIES)), "queue_order_strategy": "priority"}


def app_for(connection: Connection, **settings: Any) -> Celery:
    """Return the app for the broker and the backend of the settings: with their timeouts, TLS and Sentinel."""
    timeout = connection.operation_timeout
    app = make_app(
        broker_url=connection.broker,
        result_backend=connection.backend,
        operation_timeout=timeout,
        **{**tls_settings(connection), **queue_settings(connection), **settings},
    )
    for name, url in URL_OF_OPTIONS.items():
        if options := redis_options(connection, app.conf[url]):
            app.conf[name] = {**app.conf[name], **options}
    check_kinds(app, broker=connection.broker, backend=connection.backend)
    return app


URL_OF_OPTIONS = {"broker_transport_options": "broker_url", "result_backend_transport_options": "result_backend"}


def redis_options(connection: Connection, url: str) -> dict[str, Any]:
    """Return the options of a broker or a backend for Sentinel and for the prefix of the keys: {} if it is no Redis."""
    if scheme_of(url) not in REDIS_SCHEMES:
        return {}
    options: dict[str, Any] = {}
    if connection.sentinel_master is not None:
        sentinel_kwargs = transport_options("redis", connection.operation_timeout)
        options |= {"master_name": connection.sentinel_master, "sentinel_kwargs": sentinel_kwargs}
    if connection.key_prefix is not None:
        options["global_keyprefix"] = connection.key_prefix
    return options


def check_kinds(app: Celery, *, broker: str, backend: str) -> None:
    """Raise `InvalidConfig` for a URL of a kind that Celery does not support, or whose client is not installed."""
    check_broker_list(broker)
    with invalid_config_for("broker", broker, "give Redis, Valkey or RabbitMQ"):
        _ = app.connection_for_write().transport
    with invalid_config_for("backend", backend, "give Redis, Valkey, or a database as db+postgresql+psycopg://…"):
        _ = app.backend


@contextmanager
def invalid_config_for(setting: str, url: str, remedy: str) -> Iterator[None]:
    """Raise `InvalidConfig` for a wrong URL, and for one whose client is missing, in place of Celery's errors."""
    kind = scheme_of(url)
    try:
        check_url(url)
        check_client(setting, url)
        yield
    except InvalidUrl as error:
        raise InvalidConfig(setting, error.problem, error.remedy) from None
    except (KeyError, ImportError, ImproperlyConfigured) as error:
        missing = error.name if isinstance(error, ImportError) else None
        if missing is not None and missing != kind:
            problem = f"a server of kind {kind!r} needs the module {missing}, which cannot be loaded"
            raise InvalidConfig(setting, problem, f"install it, or {remedy}") from None
        raise InvalidConfig(setting, f"Celery does not support {kind!r}", remedy) from None
    except InvalidConfig:
        raise
    except TypeError:
        raise InvalidConfig(
            setting, "has a parameter that Celery does not know", "correct what follows the ?"
        ) from None
    except ValueError as error:  # its message may contain the password
        if "ssl_cert_reqs" in str(error):
            add = "add ?ssl_cert_reqs=required to the URL"
            raise InvalidConfig(setting, f"{kind}:// needs the parameter ssl_cert_reqs", add) from None
        raise InvalidConfig(setting, f"is not a valid {kind} URL", "check host, port and database") from None


def make_app(*, broker_url: str, result_backend: str, operation_timeout: float = 2.0, **settings: Any) -> Celery:
    """Return a Celery app that is not the process's current app. `settings` are Celery's own, and override ours.

    `operation_timeout`, in seconds, bounds each operation on the result backend.
    """
    app = Celery("celeriac", broker=broker_url, backend=result_backend, set_as_current=False)
    settings = priority_settings(broker_url, with_queue_type(settings))
    settings = {**SETTINGS, **backend_settings(operation_timeout), **settings}
    settings["database_engine_options"] = engine_options(result_backend, settings["database_engine_options"])
    app.conf.update(settings)
    if is_quorum(settings):
        set_up_queues(app)
    return app


def with_queue_type(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the caller's settings, with the type of the default queue for every other queue, too."""
    return {"task_create_missing_queue_type": "quorum", **settings} if is_quorum(settings) else settings


def priority_settings(broker_url: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the caller's settings, with ten priorities inside the broker unless the caller set others.

    Executor and workers must have the same settings: these decide which lists of Redis are used, and which arguments a
    queue of RabbitMQ has. A quorum queue must not be declared with priorities; RabbitMQ 4 gives it two.
    """
    if scheme_of(broker_url) in REDIS_SCHEMES:
        options = {**REDIS_PRIORITIES, **settings.get("broker_transport_options", {})}
        return {**settings, "broker_transport_options": options}
    if scheme_of(broker_url) in AMQP_SCHEMES and not is_quorum(settings):
        return {"task_queue_max_priority": PRIORITIES, **settings}
    return settings


def priority_settings_for(app: Celery) -> dict[str, Any]:
    """Return the settings that another app needs to take messages of every priority."""
    current = {name: app.conf[name] for name in PRIORITY_SETTINGS}
    non_empty = {name: value for name, value in current.items() if value}
    return priority_settings(app.conf.broker_url or "amqp://", non_empty)


def queue_settings(connection: Connection) -> dict[str, Any]:
    """Return the settings for the type of the queues. Raise `InvalidConfig` for a broker without quorum queues."""
    if connection.queue_type == "classic":
        return {}
    if scheme_of(connection.broker) not in AMQP_SCHEMES:
        problem = f"a broker of kind {scheme_of(connection.broker)!r} has no {connection.queue_type} queues"
        raise InvalidConfig("queue_type", problem, "leave it out, or give RabbitMQ as the broker")
    return {"task_default_queue_type": connection.queue_type}


def tls_settings(connection: Connection) -> dict[str, Any]:
    """Return the settings for TLS. A server needs a certificate for its name. TLS options in a URL override these."""
    files = {"ca_certs": connection.tls_ca, "certfile": connection.tls_cert, "keyfile": connection.tls_key}
    options: dict[str, Any] = {name: path for name, path in files.items() if path is not None}
    options["cert_reqs"] = ssl.CERT_REQUIRED
    for_redis = {f"ssl_{name}": value for name, value in options.items()}
    settings: dict[str, Any] = {}
    if scheme_of(connection.broker) in TLS_SCHEMES:
        settings["broker_use_ssl"] = options if scheme_of(connection.broker) in AMQP_SCHEMES else for_redis
    if scheme_of(connection.backend) in TLS_SCHEMES:
        settings["redis_backend_use_ssl"] = for_redis
    return settings


def backend_settings(timeout: float) -> dict[str, Any]:
    """Return settings with which the backend tries each operation once, for at most `timeout` seconds. The executor
    decides about retries."""
    return {
        "redis_socket_timeout": timeout,
        "redis_socket_connect_timeout": timeout,
        "redis_retry_on_timeout": False,
        "result_backend_always_retry": False,
        "result_backend_transport_options": {"retry_policy": {"max_retries": 0, "timeout": timeout}},
        "database_engine_options": {"pool_pre_ping": True},
        "database_create_tables_at_setup": False,  # the first write creates them; a reader needs no server yet
    }


def transport_options(driver_type: str, timeout: float) -> dict[str, Any]:
    """Return options with which one operation of a broker's client fails after `timeout` seconds."""
    match driver_type:
        case "redis":
            return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry_on_timeout": False}
        case "amqp":
            return {"read_timeout": timeout, "write_timeout": timeout, "confirm_publish": True}
    return {}
