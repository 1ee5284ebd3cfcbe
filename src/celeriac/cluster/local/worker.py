"""A real Celery worker without a thread of its own: it works when it is asked to.

    message ─► Consumer ─► strategy ─► Request ─► CommandPool ─► claim ─► command
    report  ─► tracer: execute_command returns or raises ─► result backend

Consumer, strategy, request, tracer and signals are Celery's. Its two loops are not: where a worker's consumer would
wait for the broker for ever, this one returns, and the pool starts a command and is told of its end later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from celery import Celery, states
from celery.app.trace import trace_task_ret
from celery.concurrency.base import BasePool, apply_target
from celery.worker import WorkController
from celery.worker.consumer import Consumer

from celeriac.backend.claims.claim import Granted
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.broker.app import TASK_NAME, TASK_OPTIONS
from celeriac.cluster.local.backend import MemoryBackend, ResultStore
from celeriac.cluster.local.commands import Commands
from celeriac.cluster.local.journal import Journal
from celeriac.cluster.local.transport import MemoryBroker, Transport
from celeriac.worker.execute_command import execute_command, request_of
from celeriac.worker.outcome import HOST
from celeriac.worker.output import OutputPolicy
from celeriac.worker.supervisor.messages import CommandReport, CommandRequest
from celeriac.worker.supervisor_client import SupervisorDied

HOLDER = "embedded"
QUEUE = "celeriac"
"""All tasks go through one: the executor's slots have already seen to the limits of theirs."""


class FinishedCommands:
    """The `CommandRunner` of commands that have ended: it returns their reports."""

    def __init__(self) -> None:
        self.reports: dict[str, CommandReport | SupervisorDied] = {}
        """By task id."""

    def run(self, request: CommandRequest) -> CommandReport:
        """Return the report of a command, once. Raises `SupervisorDied`."""
        report = self.reports.pop(request.id)
        if isinstance(report, SupervisorDied):
            raise report
        return report


class EmbeddedApp(Celery):  # type: ignore[misc]
    """A Celery app whose broker and backend are objects of this process, whatever the environment says."""

    def __init__(
        self,
        *,
        broker: MemoryBroker,
        store: ResultStore,
        claims: MemoryClaims,
        commands: Commands,
        policy: OutputPolicy,
        journal: Journal | None = None,
    ) -> None:
        super().__init__("celeriac", set_as_current=False)
        self.broker, self.store, self.claims, self.commands, self.policy = broker, store, claims, commands, policy
        self.journal = journal
        self.finished = FinishedCommands()
        self.task(name=TASK_NAME, **TASK_OPTIONS)(self._execute_command)
        self.finalize()

    def _execute_command(self, message: dict[str, Any]) -> dict[str, Any]:
        """The task's body. It is called when the command has ended, and says how."""
        return execute_command(message, self.finished, self.policy)

    def connection_for_read(self, url: str | None = None, **_: Any) -> Any:
        return self.amqp.Connection("memory://", transport=Transport, transport_options={"broker": self.broker})

    connection_for_write = connection_for_read

    def _get_backend(self) -> MemoryBackend:
        return MemoryBackend(self.store, app=self)


class CommandPool(BasePool):  # type: ignore[misc]
    """Hands each request's command to a supervisor; when it has ended, lets Celery trace the task."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deliveries = count()

    def on_apply(
        self, target: Any, args: Any, kwargs: Any, callback: Any = None, accept_callback: Any = None, **_: Any
    ) -> None:
        name, task_id, request = args[:3]
        accept_callback(os.getpid(), time.monotonic())
        answer = self.app.claims.claim(task_id, holder=HOLDER, delivery=str(next(self._deliveries)))
        if not isinstance(answer, Granted):  # it came twice, or was called back: nothing runs, and no result is stored
            callback((0, None, 0.0))
            return
        trace = partial(apply_target, trace_task_ret, callback=callback)
        trace = partial(trace, (name, task_id, request, (request["args"], {}, {}), None, None), {"app": self.app})
        if (told := self._told_by_journal(task_id)) is not None:
            self._on_end(task_id, trace, told)
            return
        message = {**request["args"][0], "token": answer.token}
        self.app.store.put(task_id, states.STARTED, {"hostname": request["hostname"]})
        self.app.commands.start(request_of(message, self.app.policy), partial(self._on_end, task_id, trace))

    def _told_by_journal(self, task_id: str) -> CommandReport | SupervisorDied | None:
        """How it ended in an earlier process, if that had started it."""
        return None if self.app.journal is None else self.app.journal.take(task_id)

    def _on_end(self, task_id: str, trace: Callable[[], None], report: CommandReport | SupervisorDied) -> None:
        self.app.finished.reports[task_id] = report
        trace()


class OnDemandConsumer(Consumer):  # type: ignore[misc]
    """Connects and subscribes as any consumer does, then returns instead of looping."""

    def start(self) -> None:
        self.blueprint.start(self)

    def loop(self, _: Any, connection: Any, consumer: Any, *__: Any) -> None:
        consumer.on_message = self.create_task_handler()
        consumer.consume()


class OnDemandWorker(WorkController):  # type: ignore[misc]
    """Raises what breaks it, where Celery's own would log it and stop."""

    def start(self) -> None:
        self.blueprint.start(self)

    def work(self) -> None:
        """Start what the broker holds."""
        consumer = self.consumer
        while True:
            consumer.perform_pending_operations()  # before Celery 5.7 that is where messages are acknowledged
            try:
                consumer.connection.drain_events()
            except TimeoutError:
                return


def start_worker(app: EmbeddedApp, *, concurrency: int) -> OnDemandWorker:
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
