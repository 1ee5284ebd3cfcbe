"""Run the commands of a simulated worker: its client of the supervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celeriac.worker.supervisor.connection import NO_GRACE
from celeriac.worker.supervisor.messages import CommandReport, CommandRequest, StopReason
from celeriac.worker.supervisor_client import SupervisorDied
from tests.simulation.primitives import SimpleQueue, monotonic, sleep
from tests.simulation.supervisor import WORKER_GONE_GRACE, Supervisor

if TYPE_CHECKING:
    from tests.simulation.worker import SimulatedWorker


class SimulatedRunner:
    """The worker's `Runner`, to a simulated supervisor."""

    def __init__(self, worker: SimulatedWorker) -> None:
        self._worker = worker
        self._revoked: set[str] = set()
        self._reports: dict[str, tuple[Supervisor, SimpleQueue]] = {}
        self.is_closed = False

    def run(self, request: CommandRequest) -> CommandReport | None:
        if request.id in self._revoked or self.is_closed:
            self._revoked.discard(request.id)
            return None
        supervisor, report = self._worker.supervisor(), SimpleQueue()
        self._reports[request.id] = supervisor, report
        supervisor.start(request, report)
        if not supervisor.process.is_alive:
            report.put(None)
        try:
            answer: CommandReport | None = report.get()
        finally:
            self._reports.pop(request.id, None)
        if answer is None:
            raise SupervisorDied
        return answer

    def supervisor_died(self, supervisor: Supervisor) -> None:
        for owner, report in self._reports.values():
            if owner is supervisor:
                report.put(None)

    # — the worker's `PoolControl` —

    def heartbeat(self) -> None:
        self._worker.supervisor().heartbeat(monotonic())

    def revoke(self, request: Any) -> None:
        if request.id in self._reports:
            self._worker.supervisor().stop(request.id, StopReason.REVOKED)
        else:
            self._revoked.add(request.id)

    def supersede(self, request: Any) -> None:
        supervisor = self._worker.supervisor()
        for task_id in list(self._reports):
            if request is None or request.id == task_id:
                supervisor.stop(task_id, StopReason.SUPERSEDED, NO_GRACE)

    def has_started(self, request: Any) -> bool:
        return True

    def take_no_more(self) -> None:
        pass

    def end(self) -> None:
        self.is_closed = True
        supervisor = self._worker.supervisor()
        for task_id in list(self._reports):
            supervisor.stop(task_id, StopReason.WORKER_GONE, WORKER_GONE_GRACE)
        while self._reports:
            sleep(0.05)

    def close(self) -> None:
        self.is_closed = True
