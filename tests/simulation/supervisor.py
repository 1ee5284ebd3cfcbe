"""The supervisor of a simulated worker: when it ends commands is decided by `celeriac.worker.supervisor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from celeriac.worker.supervisor.lease_policy import LeasePolicy
from celeriac.worker.supervisor.messages import CommandReport, CommandRequest, StopReason, StreamReport
from tests.simulation.primitives import Event, SimpleQueue, monotonic, sleep, wall
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.history import History

WORKER_GONE_GRACE = 1.5  # seconds from the TERM to the KILL of commands whose worker is gone


@dataclass(eq=False)
class Run:
    """A command that runs."""

    request: CommandRequest
    report: SimpleQueue
    process: Process
    end: Event = field(default_factory=Event)
    stopped: StopReason | None = None
    kill_at: float = float("inf")
    is_live: bool = False


class Supervisor:
    """The process that runs the commands of one worker."""

    def __init__(self, history: History, machine: Process, name: str, renewed_at: float | None) -> None:
        """`renewed_at` is when the worker's lease was renewed, by the monotonic clock of the machine."""
        self.history = history
        self.process = Process(history.world, name, rate=machine.rate, wall_offset=machine.wall_offset)
        self.process.started_at = machine.started_at  # one machine has one monotonic clock
        self.runs: dict[str, Run] = {}
        self._lease = LeasePolicy(oversleep_limit=0.5)
        self._checks_lease = False
        self.worker_is_gone = False
        if renewed_at is not None:
            self.heartbeat(renewed_at)

    def start(self, request: CommandRequest, report: SimpleQueue) -> None:
        """Start a command. Called by the worker."""
        if self.process.is_alive:
            run = self.runs[request.id] = Run(request, report, self.process)
            self.process.spawn(self._run, run, name=f"command {request.id}")

    def stop(self, task_id: str, reason: StopReason, grace: float | None = None) -> None:
        """TERM now, and KILL after the grace. The first reason counts, and the shortest grace."""
        run = self.runs.get(task_id)
        if run is None or (run.stopped is not None and grace is None):
            return
        run.stopped = run.stopped or reason
        run.kill_at = min(run.kill_at, self.process.monotonic() + (run.request.grace if grace is None else grace))
        run.end.set()

    def heartbeat(self, sent_at: float) -> None:
        if self.process.is_alive:
            self.process.spawn(self._on_heartbeat, sent_at, name="heartbeat")

    def worker_ended(self) -> None:
        """The control socket was closed."""
        self.worker_is_gone = True
        if self.process.is_alive:
            self.process.spawn(self._stop_all, StopReason.WORKER_GONE, WORKER_GONE_GRACE, name="shutdown")

    def _on_heartbeat(self, sent_at: float) -> None:
        self._lease.record_heartbeat(sent_at, monotonic())
        if not self._checks_lease:
            self._checks_lease = True
            self.process.spawn(self._check_lease, name="lease")

    def _check_lease(self) -> None:
        while (grace := self._lease.grace(monotonic())) is None:
            sleep(self._lease.silent_at - monotonic())
        self._checks_lease = False
        self._stop_all(StopReason.WORKER_SILENT, grace)

    def _stop_all(self, reason: StopReason, grace: float) -> None:
        for task_id in list(self.runs):
            self.stop(task_id, reason, min(self.runs[task_id].request.grace, grace))

    def _run(self, run: Run) -> None:
        history, request = self.history, run.request
        try:
            if request.start_by is not None and monotonic() >= request.start_by:
                run.report.put(CommandReport.not_started(stopped=StopReason.TOO_LATE))
                return
            if run.stopped is not None or self.worker_is_gone:
                run.report.put(CommandReport.not_started(stopped=run.stopped or StopReason.WORKER_GONE))
                return
            began = monotonic()
            plan = history.invariants.command_started(run)
            run.end.wait(plan.duration)
            if run.stopped is not None:  # TERM: it ends by itself, or is killed
                ends_at = monotonic() + plan.time_to_end
                while (left := min(ends_at, run.kill_at) - monotonic()) > 0:
                    run.end.clear()  # a shorter grace may come
                    run.end.wait(left)
            history.invariants.command_ended(run)
            run.report.put(report_of(run.stopped, plan.status if run.stopped is None else 15, monotonic() - began))
        finally:
            self.runs.pop(request.id, None)


def report_of(stopped: StopReason | None, status: int, duration: float) -> CommandReport:
    nothing = StreamReport(path=None, size=0, left_out=0, tail="")
    return CommandReport(
        pid=1,
        status=status,
        started=wall() - duration,
        duration=duration,
        peak_memory=None,
        stopped=stopped,
        leftovers_ended=False,
        error=None,
        output_error=None,
        stdout=nothing,
        stderr=nothing,
    )
