"""The Celery app: made here, handed to everyone, never looked up.

executor ─► Publisher ─► app ─► broker ─► worker (same app settings) ─► execute_command
"""

from __future__ import annotations

import time
from typing import Any

from celery import Celery

from celeriac.errors import CommandFailed
from celeriac.task import DEFAULT_QUEUE, Secret, Task

TASK_NAME = "celeriac.execute_command"

TASK_OPTIONS: dict[str, Any] = {
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


def make_app(*, broker_url: str, result_backend: str, operation_timeout: float = 2.0, **settings: Any) -> Celery:
    """A Celery app that nothing else in the process can find. `settings` are Celery's own, and go over ours.

    `operation_timeout`, in seconds, bounds each operation on the result backend.
    """
    app = Celery("celeriac", broker=broker_url, backend=result_backend, set_as_current=False)
    app.conf.update({**SETTINGS, **backend_settings(operation_timeout), **settings})
    return app


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
    return {
        "key": str(task.key),
        "id": task.message_id,
        "attempt": task.attempt,
        "command": task.command if isinstance(task.command, str) else list(task.command),
        "env": {name: str.__str__(value) for name, value in task.env.items()},
        "secrets": [name for name, value in task.env.items() if isinstance(value, Secret)],
        "cwd": task.cwd,
        "timeout": task.timeout,
        "grace": task.grace,
        "sent_at": time.time(),
    }
