"""The parts of one process with an executor, as a `Cluster` has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.cluster.lost_tasks.detector import ThreadedLostTaskDetector
from celeriac.cluster.revoker import ControlRevoker
from celeriac.cluster.shared_places import SharedPlaces
from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import Ledger
from tests.simulation.clients import SimulatedPublisher, SimulatedResults
from tests.simulation.cluster import SimulatedQueues, Workers
from tests.simulation.primitives import monotonic
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.history import History

TIMEOUT = 2.0  # seconds that one operation may take


class ClusterParts:
    """The real decisions of a cluster, each with a simulated client."""

    def __init__(self, history: History, process: Process) -> None:
        self._history, self._process = history, process
        self.results = SimulatedResults(history, process)
        self._workers = Workers(history)
        self._leases = self._workers.leases = LeaseMonitor(history.remote_claims(), on_news=self.results.wake)
        app: Any = SimpleNamespace(
            conf=SimpleNamespace(worker_enable_remote_control=True),
            control=SimpleNamespace(revoke=history.broadcast_revoke),
        )
        self._detector = ThreadedLostTaskDetector(
            app,
            queues=SimulatedQueues(history, self._workers),
            workers=self._workers,  # type: ignore[arg-type]
            leases=self._leases,
            timeout=TIMEOUT,
            on_found=self.results.wake,
        )
        self._places = None if history.limits is None else history.limits.places_of_executor()
        claims = history.remote_claims()
        self._revoker = ControlRevoker(app, claims=claims, timeout=TIMEOUT, on_revoked=self.results.hint)

    def _open_places(self) -> SharedPlaces:
        assert self._places is not None
        return self._places

    def executor(self, ledger: Ledger | None) -> CeleryExecutor:
        """Return the executor of these parts."""
        history, publisher = self._history, SimulatedPublisher(self._history)
        if self._places is not None:
            publisher.limits_of = self._places.limits_of
        settings = {name: value for feature in history.features for name, value in feature.settings().items()}
        executor = publisher.executor = CeleryExecutor(
            Config(parallelism=history.parallelism, search_interval=history.search_interval, **settings),
            publisher=publisher,
            results=self.results,
            revoker=self._revoker,
            capacity=self._workers if history.late_binding else None,
            lost_task_detector=self._detector,
            ledger=ledger,
            open_places=self._open_places,
            clock=monotonic,
            wall_clock=self._process.wall,
            random=history.world.random,
        )
        return executor

    def close(self) -> None:
        """Close the connections. Tasks in flight stay in flight."""
        self._revoker.close()
        self._detector.close()
        self._leases.close()
        self.results.close()
        if self._places is not None:
            self._places.close()
