"""Broker, worker and result backend for one machine, inside this process: nothing to install, nothing to start.

    publish ─► MemoryBroker ─► OnDemandWorker ─► MemoryClaims ─► Commands ─► two supervisor processes ─► commands
    read    ◄─ ResultStore  ◄─ Celery's tracer ◄─┘

One thread does it all: what a worker's threads would do happens while the executor asks for results or waits for them.
The commands run beside it, under the supervisors. That is faster than a pool of threads (they hand the interpreter lock
around for every step of every task) and leaves no thread to die unseen.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from celeriac.backend.claims.memory import MemoryClaims
from celeriac.broker.app import SETTINGS
from celeriac.broker.one_by_one import OneByOnePublisher
from celeriac.broker.task_message import TaskMessage, task_message
from celeriac.cluster.local.backend import ResultStore
from celeriac.cluster.local.commands import Commands
from celeriac.cluster.local.journal import Journal
from celeriac.cluster.local.transport import MemoryBroker
from celeriac.cluster.local.worker import QUEUE, EmbeddedApp, start_worker
from celeriac.config.executor_config import Config
from celeriac.control.unix_server import UnixControlServer
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import Ledger, Unreadable
from celeriac.task.result import Result
from celeriac.task.task import Task
from celeriac.worker.output import OutputPolicy

logger = logging.getLogger(__name__)


class LocalCluster:
    """A `ResultReader` and a `Revoker`, with everything behind them. Use as a context manager, or call `close`.

    One embedded worker serves one executor.
    """

    is_durable = True
    pushes = True
    answered = True

    def __init__(
        self, config: Config, policy: OutputPolicy | None = None, *, desk: bool = False, journal: Path | None = None
    ) -> None:
        """With `desk`, `celeriac cancel` and `celeriac explain` of the same user and machine reach the executor.

        With `journal`, a folder, this process may be killed: the next one with the same folder waits until all that was
        running is dead. Of a task that is queued there once more, under the same id and attempt, it tells how it ended,
        and runs it only if it had not been started. Raises `InvalidConfig` for a folder of no use.
        """
        self._config = config
        self._is_remembered = False
        """Whether what `forget` is told of stands in a ledger."""

        self.journal = Journal(journal) if journal is not None else None
        self._commands = Commands(self.journal)
        self._store = ResultStore()
        self._claims = MemoryClaims(on_cancelled=self._store.put_revoked)
        app = EmbeddedApp(
            broker=MemoryBroker(),
            store=self._store,
            claims=self._claims,
            commands=self._commands,
            policy=policy or OutputPolicy(),
            journal=self.journal,
        )
        app.conf.update({**SETTINGS, "task_acks_late": False, "worker_enable_remote_control": False})
        self._worker = start_worker(app, concurrency=config.parallelism)
        self._publisher = OneByOnePublisher(app, message_factory=to_the_one_queue)
        self._desk = self._open_control_server() if desk else None

    def executor(self, ledger: Ledger | None = None) -> CeleryExecutor:
        """With `ledger`, an executor that remembers: see `celeriac.ledger`."""
        self._is_remembered = ledger is not None
        desk = self._desk.requests if self._desk is not None else None
        return CeleryExecutor(
            self._config,
            publisher=self._publisher,
            results=self,
            revoker=self,
            control_channel=desk,
            ledger=ledger,
            outbox=False,
        )

    def changed(self) -> Collection[str]:
        self._commands.poll(0)
        self._worker.work()  # after the ends of others, so that each start is seen before its end
        return self._store.take_changed()

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        return self._store.read(ids)

    def forget(self, ids: Collection[str]) -> None:
        self._store.forget(ids)
        self._claims.forget(ids)
        if self.journal is not None and self._is_remembered:
            self.journal.prune(self._is_wanted)

    def _is_wanted(self, task_id: str) -> bool:
        """Whether what the journal says of it is to be told yet, or is not in the ledger yet."""
        return self._claims.knows(task_id) or (self.journal is not None and self.journal.may_tell(task_id))

    def wait(self, timeout: float) -> None:
        self._worker.work()
        if not self._store.something_ended:
            self._commands.poll(timeout)

    def wake(self) -> None:
        """End a `wait`. May be called from a signal handler or another thread."""
        self._commands.wake()

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        self._claims.cancel(list(ids), unless_started=unless_started)
        if not unless_started:
            for task_id in ids:
                self._commands.revoke(task_id)

    def close(self) -> None:
        """End everything that runs: TERM, a short grace, KILL."""
        if self._desk is not None:
            self._desk.close()
        self._commands.close()
        self._publisher.close()
        self._worker.stop()
        if self.journal is not None:
            self.journal.close()

    def _open_control_server(self) -> UnixControlServer | None:
        try:
            return UnixControlServer(wake=self.wake)
        except OSError as error:
            logger.warning("celeriac cancel and celeriac explain will not reach this process: %s", error)
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def to_the_one_queue(task: Task) -> TaskMessage:
    """Which the worker has declared, and whose priorities are the tasks' own."""
    options = {"queue": QUEUE, "priority": task.priority, "declare": []}
    return replace(task_message(task), options=options, urgency=None)
