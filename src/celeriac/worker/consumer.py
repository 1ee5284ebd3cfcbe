"""Celery's worker, with what is ours added: the watchdog, the warden, and remote control that reaches what runs.

Consumer, strategy, request, tracer, events and remote control are Celery's.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from amqp.exceptions import PreconditionFailed
from celery import bootsteps
from celery.worker import WorkController
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.consumer.control import Control

from celeriac.errors import QueueRefused
from celeriac.worker.acks import Acks, put_back_what_has_not_begun
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.log import log_event
from celeriac.worker.pool import CommandPool
from celeriac.worker.pool_control import PoolControl
from celeriac.worker.shutdown import ShutdownCoordinator
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.watchdog import Watchdog

RECONNECTING = {"interval_start": 0.2, "interval_step": 0.5, "interval_max": 5.0}
"""Seconds between two tries: Celery begins with 2 and ends with 30."""


class Worker(WorkController):  # type: ignore[misc]
    """Raises what breaks it, where Celery's own would log it and stop."""

    def __init__(
        self,
        *,
        hands: PoolControl,
        warden: ShutdownCoordinator,
        acks: Acks,
        keeper: LeaseManager | None,
        guard: SignatureVerifier | None = None,
        **options: Any,
    ) -> None:
        self.hands, self.warden, self.acks, self.keeper, self.watchdog = hands, warden, acks, keeper, Watchdog()
        self.guard = guard
        self.pool: Any
        super().__init__(**options)

    def start(self) -> None:
        try:
            self.blueprint.start(self)
        except SystemExit:
            self.stop()
        except PreconditionFailed as error:
            self.stop()
            queue = re.search(r"queue '([^']*)'", error.reply_text)
            raise QueueRefused(queue[1] if queue else "?", error.reply_text) from None

    def on_consumer_ready(self, consumer: Any) -> None:
        self.take_up_lease()
        log_event("ready", worker=self.hostname, queues=",".join(self.app.amqp.queues.consume_from))

    def take_up_lease(self) -> None:
        """Not before the pool was started: no thread of it may be forked away."""
        if self.keeper is not None:
            self.keeper.watch(self)

    @property
    def slots(self) -> int:
        """How many tasks it runs at once, at the most."""
        return int(getattr(self, "max_concurrency", None) or self.concurrency)

    @property
    def is_busy(self) -> bool:
        """Whether anything runs, or has run and is not yet acknowledged."""
        return bool(self.pool.out if isinstance(self.pool, CommandPool) else worker_state.reserved_requests)


class WatchedConsumer(Consumer):  # type: ignore[misc]
    def connection_for_read(self, heartbeat: Any = None) -> Any:
        connection = super().connection_for_read(heartbeat)
        self.controller.watchdog.listen_to(connection.transport)
        return connection

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(conn.ensure_connection, **RECONNECTING)
        return super().ensure_connected(conn)

    def on_close(self) -> None:
        self.controller.acks.lost()
        if not isinstance(self.pool, CommandPool):  # whose threads have begun with all that was taken
            put_back_what_has_not_begun(self.controller.acks)
        super().on_close()


class Revokes(bootsteps.StartStopStep):  # type: ignore[misc]
    """Lets a remote revoke end what runs, where Celery's own reaches only what has not started.

    Celery before 5.7 stores REVOKED at once, also for what runs and in workers that do not have it. Here that is stored
    when it is true: by whoever drops the message, or when the processes are dead.
    """

    requires = (Control,)

    def start(self, consumer: Any) -> None:
        node = consumer.blueprint[Control.name].box.node

        def revoke(_state: Any, task_id: Any, *, unless_started: bool = False, **_: Any) -> Any:
            ids = {task_id} if isinstance(task_id, str) else set(task_id)
            worker_state.revoked.update(ids)
            for request in list(worker_state.reserved_requests):
                if request.id in ids and not (unless_started and request in worker_state.active_requests):
                    consumer.controller.hands.revoke(request)
            return {"ok": f"tasks {', '.join(sorted(ids))} flagged as revoked"}

        def shutdown(_state: Any, **_: Any) -> Any:
            consumer.controller.warden.request_shutdown()
            return {"ok": "what runs is finished first"}

        node.handlers = {**node.handlers, "revoke": revoke, "terminate": revoke, "shutdown": shutdown}

    def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
        consumer.controller.warden.register_with(hub)

    def info(self, consumer: Any) -> dict[str, Any]:
        facts = {"running": len(worker_state.active_requests)}
        guard = consumer.controller.guard
        if guard is not None and guard.rejected is not None:
            facts["refused"] = guard.rejected
        return {"celeriac": facts}
