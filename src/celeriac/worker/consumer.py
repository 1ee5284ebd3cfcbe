"""Celery's worker with our parts: the watchdog, the shutdown, and remote control that reaches running commands.

Consumer, strategy, request, tracer, events and remote control are Celery's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from celery import bootsteps
from celery.worker import WorkController
from celery.worker.components import Pool
from celery.worker.consumer.control import Control

from celeriac.broker.broker_list import BrokerList, begin_with_current, broker_list_of
from celeriac.errors import InvalidConfig, QueueRefused
from celeriac.worker.acks import put_back_unstarted
from celeriac.worker.celery_internals import (
    active_requests,
    mark_revoked,
    reserved_requests,
    set_control_handlers,
    worker_of,
)
from celeriac.worker.guarded_transport import guard_connection
from celeriac.worker.intake import Intake
from celeriac.worker.log import log_event
from celeriac.worker.parts import WorkerParts
from celeriac.worker.pool import CommandPool
from celeriac.worker.reconnection import ReconnectingConsumer
from celeriac.worker.served_queues import ServedQueues, asker_of
from celeriac.worker.shutdown_steps import Request
from celeriac.worker.watchdog import Watchdog


class Worker(WorkController):  # type: ignore[misc]
    """Celery's worker. It raises the errors that end it; Celery would only log them."""

    def __init__(self, *, parts: WorkerParts, **options: Any) -> None:
        self.parts, self.watchdog = parts, Watchdog()
        self.was_ready = False
        self.on_pool_started: Callable[[], None] | None = None
        """Called once the children of the pool exist: from then on this process may start threads."""

        self.pool: Any
        self.brokers = broker_list_of(options["app"], for_read=True)
        self.connected_to = self.brokers.current
        super().__init__(**options)

    def start(self) -> None:
        try:
            self.blueprint.start(self)
        except SystemExit:
            self.stop()
        except (InvalidConfig, QueueRefused):
            self.stop()
            raise

    def on_consumer_ready(self, consumer: Any) -> None:
        self.take_up_lease()
        log_event("ready", worker=self.hostname, queues=",".join(self.app.amqp.queues.consume_from))

    def take_up_lease(self) -> None:
        """Start the lease's threads. The pool must have started: a child must not be forked beside these threads."""
        self.was_ready = True
        if self.parts.lease_manager is not None:
            self.parts.lease_manager.start(self)

    def watch_connection(self) -> None:
        """Look after the connection to the broker. Call it about once a second, in another thread than the event
        loop's.

        Cut a connection that is dead, or that leads to another broker than the app uses now: Celery connects again.
        """
        self.consumer.settle()
        self.parts.acks.retry()
        if not self.is_waiting_for_broker:
            self.watchdog.check(self.hub)
        if self.connected_to != self.brokers.current:
            self.connected_to = self.brokers.current
            self.watchdog.cut(self.hub)

    @property
    def slots(self) -> int:
        """The largest number of tasks that run at once."""
        return int(getattr(self, "max_concurrency", None) or self.concurrency)

    @property
    def is_waiting_for_broker(self) -> bool:
        """Whether the event loop stands still, because there is no usable connection to the broker."""
        return self.consumer.connection is None or self.consumer.is_waiting

    @property
    def running(self) -> int:
        """The number of tasks that run or wait for a thread."""
        return self.pool.in_flight if isinstance(self.pool, CommandPool) else len(active_requests())

    @property
    def is_busy(self) -> bool:
        """Whether a task runs, or has ended and is not acknowledged."""
        if self.parts.acks.is_waiting and not self.is_waiting_for_broker:
            return True
        return self.pool.is_busy if isinstance(self.pool, CommandPool) else bool(reserved_requests())


class WatchedConsumer(ReconnectingConsumer):
    """Celery's consumer. A watchdog watches its connection, tasks survive the loss of that connection, and no message
    reaches Celery that the gate refuses."""

    def connection_for_read(self, heartbeat: Any = None) -> Any:
        connection = super().connection_for_read(heartbeat)
        worker_of(self).watchdog.listen_to(connection.transport)
        return connection

    def ensure_connected(self, conn: Any) -> Any:
        brokers: BrokerList = worker_of(self).brokers
        cycle = begin_with_current(conn, brokers) if brokers.has_several else None
        guard_connection(conn, self.intake)
        connected = super().ensure_connected(conn)
        if cycle is not None:
            brokers.use(cycle.last)
            worker_of(self).connected_to = cycle.last
        return connected

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        super().on_connection_error_after_connected(exc)
        worker_of(self).parts.acks.count_running()

    @property
    def intake(self) -> Intake:
        intake: Intake = worker_of(self).parts.intake
        intake.worker = self.hostname
        return intake

    def create_task_handler(self, *args: Any, **options: Any) -> Any:
        handle = super().create_task_handler(*args, **options)
        return partial(self.intake.take, handle=handle)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self.intake.drop(message)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self.intake.drop(message)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self.intake.drop(message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        self.intake.drop(message)

    def on_close(self) -> None:
        acks = worker_of(self).parts.acks
        acks.lost()
        if not isinstance(self.pool, CommandPool):  # a CommandPool has started every received task
            put_back_unstarted(acks)
        super().on_close()


class PoolStartedStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Reports that the pool has started, before the worker connects to the broker."""

    requires = (Pool,)

    def start(self, worker: Worker) -> None:
        if worker.on_pool_started is not None:
            worker.on_pool_started()

    def stop(self, worker: Worker) -> None:
        pass


class RemoteControlStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Lets a remote revoke end running commands, a remote shutdown wait for them, queues be added and removed, and the
    worker be paused.

    Celery's own revoke reaches only tasks that have not started. Before 5.7 it stores REVOKED at once, also for running
    tasks and in workers that do not have the task. Here REVOKED is stored when the message is dropped, or when the
    processes are dead.
    """

    requires = (Control,)

    def start(self, consumer: Any) -> None:
        parts: WorkerParts = worker_of(consumer).parts

        def revoke(_state: Any, task_id: Any, *, unless_started: bool = False, **_: Any) -> Any:
            ids = {one for one in ([task_id] if isinstance(task_id, str) else task_id) if isinstance(one, str)}
            mark_revoked(ids)
            active = set(active_requests())
            for request in reserved_requests():
                if request.id in ids and not (unless_started and request in active):
                    parts.pool_control.revoke(request)
            return {"ok": f"tasks {', '.join(sorted(ids))} flagged as revoked"}

        def shutdown(_state: Any, asked_by: Any = None, **_: Any) -> Any:
            asker = asker_of(asked_by)
            if asker is not None:
                log_event("draining", asked_by=asker)
            parts.shutdown.request(Request.DRAIN, asker)
            return {"ok": "shutting down once the running tasks have finished"}

        queues = ServedQueues(consumer)
        set_control_handlers(
            consumer,
            revoke=revoke,
            terminate=revoke,
            shutdown=shutdown,
            add_consumer=queues.add_consumer,
            cancel_consumer=queues.cancel_consumer,
            pause=queues.pause,
            resume=queues.resume,
        )

    def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
        worker_of(consumer).parts.shutdown.register_with(hub)

    def info(self, consumer: Any) -> dict[str, Any]:
        """Return the facts that Celery's `inspect stats` shows below "celeriac"."""
        parts: WorkerParts = worker_of(consumer).parts
        facts = {"running": len(active_requests()), "refused": parts.refusals.count, "paused": parts.pause.is_on}
        return {"celeriac": facts}
