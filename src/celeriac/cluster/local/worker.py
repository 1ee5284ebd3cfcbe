"""A Celery worker without threads: it runs when `work` is called.

    message ─► Consumer ─► strategy ─► Request ─► CommandPool ─► claim ─► command
    report  ─► tracer: execute_command returns or raises ─► result backend

Consumer, strategy, request, tracer and signals are Celery's. Two loops of Celery are replaced: the consumer
returns and does not wait for the broker, and the pool returns as soon as it has started a command.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from celery import Celery, states
from celery.worker import WorkController
from celery.worker.consumer import Consumer

from celeriac.backend.claims.claim import Granted
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.broker.app import TASK_NAME, TASK_OPTIONS
from celeriac.cluster.local.journal import Journal
from celeriac.cluster.local.result_store import MemoryBackend, ResultStore
from celeriac.cluster.local.supervisor_pool import SupervisorPool
from celeriac.cluster.local.transport import MemoryBroker, Transport
from celeriac.worker.celery_internals import BasePool, apply_target, trace_task_ret
from celeriac.worker.execute_command import conclude, request_of
from celeriac.worker.outcome import HOST
from celeriac.worker.output import OutputPolicy
from celeriac.worker.supervisor.messages import CommandReport
from celeriac.worker.supervisor_client import SupervisorDied

HOLDER = "local"
QUEUE = "celeriac"
"""The one queue of the worker: the executor has already applied the limits of the tasks' own queues."""


class FinishedCommands:
    """The reports of commands that have ended."""

    def __init__(self) -> None:
        self.reports: dict[str, CommandReport | SupervisorDied] = {}
        """By task id."""

    def take(self, task_id: str) -> CommandReport:
        """Return the report of a command, once. Raise `SupervisorDied`."""
        report = self.reports.pop(task_id)
        if isinstance(report, SupervisorDied):
            raise report
        return report


class LocalApp(Celery):  # type: ignore[misc]
    """A Celery app whose broker and result backend are objects of this process. It reads no environment variables."""

    def __init__(
        self,
        *,
        broker: MemoryBroker,
        store: ResultStore,
        claims: MemoryClaims,
        supervisors: SupervisorPool,
        output_policy: OutputPolicy,
        journal: Journal | None = None,
    ) -> None:
        super().__init__("celeriac", set_as_current=False)
        self.broker, self.store, self.claims, self.journal = broker, store, claims, journal
        self.supervisors, self.output_policy = supervisors, output_policy
        self.finished = FinishedCommands()
        self.task(name=TASK_NAME, **TASK_OPTIONS)(self._execute_command)
        self.finalize()

    def _execute_command(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the outcome of a command that has ended: the body of the Celery task."""
        return conclude(partial(self.finished.take, message["id"]), message, self.output_policy)

    def connection_for_read(self, url: str | None = None, **_: Any) -> Any:
        return self.amqp.Connection("memory://", transport=Transport, transport_options={"broker": self.broker})

    connection_for_write = connection_for_read

    def _get_backend(self) -> MemoryBackend:
        return MemoryBackend(self.store, app=self)


class CommandPool(BasePool):  # type: ignore[misc]
    """Starts the command of each request under a supervisor. When it has ended, Celery traces the task."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deliveries = count()

    def on_apply(
        self, target: Any, args: Any, kwargs: Any, callback: Any = None, accept_callback: Any = None, **_: Any
    ) -> None:
        name, task_id, request = args[:3]
        accept_callback(os.getpid(), time.monotonic())
        claim = self.app.claims.claim(task_id, holder=HOLDER, delivery=str(next(self._deliveries)))
        if not isinstance(claim, Granted):  # delivered twice, or revoked: nothing runs, and no result is stored
            callback((0, None, 0.0))
            return
        trace = partial(apply_target, trace_task_ret, callback=callback)
        trace = partial(trace, (name, task_id, request, (request["args"], {}, {}), None, None), {"app": self.app})
        journal = self.app.journal
        if journal is not None and (report := journal.take_report(task_id)) is not None:
            self._on_end(task_id, trace, report)
            return
        message = {**request["args"][0], "token": claim.token}
        on_start = partial(self.app.store.put, task_id, states.STARTED, {"hostname": request["hostname"]})
        self.app.output_policy.remove_later_attempts(message["key"], message["attempt"])
        command = request_of(message, self.app.output_policy)
        self.app.supervisors.start(command, on_start, partial(self._on_end, task_id, trace))

    def _on_end(self, task_id: str, trace: Callable[[], None], report: CommandReport | SupervisorDied) -> None:
        self.app.finished.reports[task_id] = report
        trace()


class OnDemandConsumer(Consumer):  # type: ignore[misc]
    """Connects and subscribes as Celery's consumer does. Then it returns and does not begin a loop."""

    def start(self) -> None:
        self.blueprint.start(self)

    def loop(self, _: Any, connection: Any, consumer: Any, *__: Any) -> None:
        consumer.on_message = self.create_task_handler()
        consumer.consume()


class OnDemandWorker(WorkController):  # type: ignore[misc]
    """Raises errors. Celery's worker would log them and stop."""

    def start(self) -> None:
        self.blueprint.start(self)

    def work(self) -> None:
        """Start the tasks of all messages that the broker holds."""
        consumer = self.consumer
        while True:
            consumer.perform_pending_operations()  # before Celery 5.7, this acknowledges messages
            try:
                consumer.connection.drain_events()
            except TimeoutError:
                return


def start_worker(app: LocalApp, *, concurrency: int) -> OnDemandWorker:
    """Return a worker that is connected to the app's broker."""
    worker = OnDemandWorker(
        app=app,
        hostname=f"celeriac@{HOST}",
        pool=CommandPool,
        consumer_cls=OnDemandConsumer,
        concurrency=concurrency,
        queues=[QUEUE],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return worker
