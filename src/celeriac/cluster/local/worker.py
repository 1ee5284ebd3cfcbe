"""The worker of a local cluster: it runs when `work` is called.

    publish ─► heap ─► claim ─► supervisor ─► command
                            └─► the journal has its end already
    report  ─► outcome ─► ResultStore

It does what the worker of a broker does, with the same requests and outcomes, and without Celery: loading Celery would
take as long as all the rest of a short run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import msgspec

from celeriac.backend.claims.claim import Granted
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.backend.report import (
    StoredReport,
    failed_result,
    started_result,
    success_result,
    worker_error_result,
)
from celeriac.broker.command_message import traced_message
from celeriac.cluster.local.journal import Journal
from celeriac.cluster.local.result_store import ResultStore
from celeriac.cluster.local.supervisor_pool import SupervisorPool
from celeriac.errors import CommandFailed
from celeriac.executor.interfaces import Receipt, Sent
from celeriac.log_lines import logger_for
from celeriac.task.result import Result
from celeriac.task.task import Task
from celeriac.telemetry import Telemetry
from celeriac.worker.command import conclude, request_of
from celeriac.worker.outcome import HOST
from celeriac.worker.output import OutputPolicy
from celeriac.worker.share import GPU_NAMES, GpuPool
from celeriac.worker.supervisor.messages import CommandReport
from celeriac.worker.supervisor_client import SupervisorDied

logger = logger_for(__name__)

HOLDER = "local"


class LocalWorker:
    """Also the executor's `Publisher`. One thread publishes, works and reads results, so nothing needs a lock."""

    def __init__(
        self,
        *,
        store: ResultStore,
        claims: MemoryClaims,
        supervisors: SupervisorPool,
        output_policy: OutputPolicy,
        telemetry: Telemetry,
        journal: Journal | None = None,
        gpus: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`gpus` returns the names of the GPUs. It is called when a task first needs any."""
        self._store, self._claims, self._supervisors = store, claims, supervisors
        self._output_policy, self._telemetry, self._journal = output_policy, telemetry, journal
        self._waiting: list[tuple[int, int, Task]] = []
        """A heap: the highest priority first, tasks of equal priority in order of arrival."""

        self._arrivals, self._deliveries = count(), count()
        self._find_gpus, self._gpus = gpus, None
        self._short: list[tuple[int, int, Task]] = []
        """The tasks whose GPUs are still used by commands that the executor has given up."""

    _gpus: GpuPool | None

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
        """Take tasks, which start at the next `work`."""
        for task in tasks:
            heapq.heappush(self._waiting, (-task.priority, next(self._arrivals), task))
        return [Sent(task) for task in tasks]

    def work(self) -> None:
        """Start the commands of all tasks that were published."""
        short, self._short = self._short, []
        for item in short:
            heapq.heappush(self._waiting, item)
        while self._waiting:
            item = heapq.heappop(self._waiting)
            gpus = self._take_gpus(item[2])
            if gpus is None:
                self._short.append(item)
            else:
                self._start(item[2], gpus)

    def _take_gpus(self, task: Task) -> tuple[str, ...] | None:
        """Take the GPUs that a task needs; None if too few are free."""
        if not task.gpus:
            return ()
        if self._gpus is None:
            self._gpus = GpuPool(self._find_gpus())
        return self._gpus.take(task.gpus)

    def _give_back(self, gpus: Sequence[str]) -> None:
        if gpus and self._gpus is not None:
            self._gpus.give_back(gpus)

    def _start(self, task: Task, gpus: Sequence[str]) -> None:
        task_id, policy = task.message_id, self._output_policy
        claim = self._claims.claim(task_id, holder=HOLDER, delivery=str(next(self._deliveries)))
        if not isinstance(claim, Granted):  # published twice, or revoked: nothing runs, and no result is stored
            self._give_back(gpus)
            return
        message = {**traced_message(task, self._telemetry), "token": claim.token, **({GPU_NAMES: gpus} if gpus else {})}
        on_end = partial(self._on_end, message)
        if self._journal is not None and (report := self._journal.take_report(task_id)) is not None:
            on_end(report)
            return
        policy.remove_later_attempts(message["key"], message["attempt"])
        on_start = partial(self._store.put, task_id, started_result(HOST))
        self._supervisors.start(request_of(message, policy), on_start, on_end)

    def _on_end(self, message: dict[str, Any], report: CommandReport | SupervisorDied) -> None:
        self._give_back(message.get(GPU_NAMES, ()))
        self._store.put(message["id"], self._result_of(message, report))

    def _result_of(self, message: dict[str, Any], report: CommandReport | SupervisorDied) -> Result:
        try:
            outcome = conclude(report, message, self._output_policy)
            return success_result(msgspec.convert(outcome, StoredReport))
        except CommandFailed as failure:
            return failed_result(failure)
        except Exception as error:  # it ends this task alone, as on any worker
            logger.exception("[%s] the end of its command cannot be handled", message["key"])
            return worker_error_result(error)
