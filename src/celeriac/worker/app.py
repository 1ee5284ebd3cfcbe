"""The Celery app of a worker: it detects dead connections, and stores results after an outage of the backend."""

from __future__ import annotations

import socket
from typing import Any

from celery import Celery

from celeriac.backend.kind import import_for_database
from celeriac.broker.app import REDIS_PRIORITIES, app_for
from celeriac.config.settings import AMQP_SCHEMES, REDIS_SCHEMES, Connection, scheme_of
from celeriac.worker.durable_results import keep_results

SOCKET_TIMEOUT = 5.0  # seconds; longer than the 1 s that Kombu lets Redis wait for a message
HEALTH_CHECK_INTERVAL = 5.0  # seconds between two PINGs
HEARTBEAT_INTERVAL = 10.0  # seconds, of AMQP
VISIBILITY_TIMEOUT = 24 * 3600  # seconds until Redis re-delivers an unacknowledged message, even if its command runs
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def worker_app(connection: Connection, *, in_threads: bool = False) -> Celery:
    """Return the app for a worker. With `in_threads`, its tasks run in threads of one process."""
    settings = {**durable_settings(), "broker_transport_options": transport_options(connection.broker)}
    app = app_for(connection, **settings)
    make_results_durable(app)
    if in_threads and has_database(app):
        import_for_database("celeriac.worker.database_results").share_connections(app)
    return app


def durable_settings() -> dict[str, Any]:
    """Return Celery's settings for a worker that survives outages of the broker and of the result backend."""
    return {
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,  # `WatchedConsumer` decides which errors of a channel end the worker
        "broker_heartbeat": HEARTBEAT_INTERVAL,
        "result_backend_always_retry": True,
        "result_backend_max_retries": float("inf"),  # the default for a database is 3
        "worker_send_task_events": True,
        "worker_deduplicate_successful_tasks": True,
    }


def make_results_durable(app: Celery) -> None:
    """Keep results until the result backend stores them, whether it is unavailable or refuses."""
    keep_results(app)
    if has_database(app):
        import_for_database("celeriac.worker.database_results").read_plain_data_only(app)


def has_database(app: Celery) -> bool:
    return scheme_of(app.conf.result_backend).startswith("db+")


def transport_options(broker: str) -> dict[str, Any]:
    """Return the transport options for a Celeriac worker: priorities, and `connection_options`."""
    priorities = REDIS_PRIORITIES if scheme_of(broker) in REDIS_SCHEMES else {}
    return {**priorities, **connection_options(broker)}


def connection_options(broker: str) -> dict[str, Any]:
    """Return the transport options that let a worker detect a dead connection."""
    if scheme_of(broker) in REDIS_SCHEMES:
        return {
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            "socket_keepalive": True,
            "socket_keepalive_options": {
                getattr(socket, name): value for name, value in KEEPALIVE.items() if hasattr(socket, name)
            },
            "health_check_interval": HEALTH_CHECK_INTERVAL,
            "visibility_timeout": VISIBILITY_TIMEOUT,
        }
    if scheme_of(broker) in AMQP_SCHEMES:
        return {"read_timeout": HEARTBEAT_INTERVAL, "write_timeout": HEARTBEAT_INTERVAL}
    return {}
