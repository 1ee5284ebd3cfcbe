"""The parts of a worker that its task and its consumer share."""

from __future__ import annotations

from dataclasses import dataclass

from celeriac.worker.acks import Acks
from celeriac.worker.intake import Intake
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.measures import WorkerMeasures
from celeriac.worker.pause import WorkerPause
from celeriac.worker.pool_control import PoolControl
from celeriac.worker.refusals import Refusals
from celeriac.worker.resource_room import ResourceRoom
from celeriac.worker.shutdown import ShutdownCoordinator
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.start_hold import StartHold


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    pool_control: PoolControl
    acks: Acks
    intake: Intake
    refusals: Refusals
    verifier: SignatureVerifier
    lease_manager: LeaseManager | None
    """None if the result backend cannot hold claims: then a message that is delivered twice runs twice."""

    shutdown: ShutdownCoordinator
    pause: WorkerPause
    measures: WorkerMeasures
    start_hold: StartHold | None = None
    """Holds commands back while the machine is busy; None without such a limit."""

    resources: ResourceRoom | None = None
    """Shares out CPUs, memory and GPUs; None if the worker does not count what tasks need."""

    @property
    def waiting(self) -> frozenset[str]:
        """The ids of the tasks that have a thread, and wait for their start."""
        holds = (self.start_hold, self.resources)
        return frozenset(task_id for hold in holds if hold is not None for task_id in hold.waiting)
