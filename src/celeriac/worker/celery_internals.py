"""Names of Celery's worker that are private, or not documented, and that Celeriac needs nevertheless.

Each function wraps one of them. All were checked with Celery 5.5, 5.6 and 5.7; where the versions differ, the docstring
says so. `tests/contract/test_celery_internals.py` fails by name when a version lacks one. The private names that need
no `celery.worker` are in `celeriac.broker.celery_internals`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from celery.app.trace import ExceptionInfo, setup_worker_optimizations
from celery.concurrency.base import apply_target
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.utils.quorum_queues import detect_quorum_queues
from celery.worker import state
from celery.worker.consumer.control import Control

__all__ = ["ExceptionInfo", "PreforkPool", "ThreadPool", "apply_target"]

# — the process —


def prepare_tracing(app: Any, hostname: str) -> None:
    """Choose the app whose tasks this process runs, and the fast paths of Celery's tracer."""
    setup_worker_optimizations(app, hostname)


def stop_event_loop() -> None:
    """Make the worker's event loop end after its current round, with exit status 0."""
    state.should_stop = 0


def raise_if_stopped() -> None:
    """Raise `SystemExit` if the worker has to stop."""
    state.maybe_shutdown()


# — requests —


def active_requests() -> list[Any]:
    """Return the requests that were handed to the pool."""
    return snapshot(state.active_requests)


def reserved_requests() -> list[Any]:
    """Return the requests that the worker has received and not finished. The active ones are among them."""
    return snapshot(state.reserved_requests)


def has_accepted_task() -> bool:
    """Return whether any task was handed to the pool."""
    return bool(state.total_count)


def accepted_tasks() -> int:
    """Return how many tasks were handed to the pool so far."""
    return sum(snapshot(state.total_count.values()))


def snapshot(requests: Iterable[Any]) -> list[Any]:
    """Copy a set that other threads change."""
    while True:
        try:
            return list(requests)
        except RuntimeError:  # the set has changed meanwhile
            continue


def mark_revoked(ids: Iterable[str]) -> None:
    """Make Celery drop messages with these ids before they start."""
    state.revoked.update(ids)


def is_marked_revoked(task_id: str) -> bool:
    """Return whether a message with this id would be dropped."""
    return task_id in state.revoked


def set_payload(message: Any, payload: Any) -> None:
    """Store the decoded body of a message, so that it is not decoded again. With None, it is decoded when needed."""
    message._decoded_cache = payload


# — the consumer —


def worker_of(consumer: Any) -> Any:
    """Return the worker that made a consumer."""
    return consumer.controller


def set_control_handlers(consumer: Any, **handlers: Callable[..., Any]) -> None:
    """Replace handlers of remote control commands, by name, only in this worker."""
    node = consumer.blueprint[Control.name].box.node
    node.handlers = {**node.handlers, **handlers}


def uses_quorum_queues(consumer: Any) -> bool:
    """Return whether a consumer has quorum queues, whose prefetch count cannot be changed."""
    return bool(detect_quorum_queues(consumer.app, consumer.connection.transport.driver_type)[0])


def restore_prefetch_count(consumer: Any) -> None:
    """Let Celery prefetch one message more, because a task from before the last reconnection has ended."""
    consumer._restore_prefetch_count_after_connection_restart(None)
