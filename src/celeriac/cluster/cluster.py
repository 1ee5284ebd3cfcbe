"""Everything behind an executor whose Celery workers run elsewhere: connections to the broker and the result backend.

CeleryExecutor ─► Publisher ─► broker ─► workers ─► result backend ─► ResultReader ─► CeleryExecutor
       ├── Capacity: how many tasks the live workers run ◄─────┤
       ├── LostTaskDetector: which sent tasks are lost ◄───────┘
       └── ControlChannel: requests of other processes, over the broker
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from celery import Celery

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.backend.claims.open import places_for
from celeriac.backend.outputs import output_store_for
from celeriac.backend.results import results_for
from celeriac.broker.app import check_kinds, make_app
from celeriac.broker.broker_list import ReturnToFirst
from celeriac.broker.publishers import publisher_for
from celeriac.broker.task_message import LimitsOf, MessageFactory, signed_message_factory
from celeriac.cluster.lost_tasks.detector import lost_task_detector_for
from celeriac.cluster.output_collector import OutputCollector
from celeriac.cluster.revoker import ControlRevoker
from celeriac.cluster.worker_measures import read_workers
from celeriac.cluster.worker_monitor import WorkerMonitor
from celeriac.config.executor_config import Config
from celeriac.config.settings import default_backend, scheme_of
from celeriac.control.broker_server import BrokerControlServer
from celeriac.control.mailbox import has_mailboxes
from celeriac.errors import InvalidConfig
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import Ledger
from celeriac.surviving_loop import thread_health
from celeriac.telemetry import Telemetry
from celeriac.worker.output import OutputPolicy

if TYPE_CHECKING:
    from celeriac.cluster.shared_places import SharedPlaces


class Cluster:
    """A broker, a result backend and the workers on them. One cluster serves one executor.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        broker: str,
        backend: str | None = None,
        *,
        config: Config | None = None,
        late_binding: bool = True,
        signing_key: str | None = None,
        terminate: bool = False,
        control_channel: bool = True,
        telemetry: Telemetry | None = None,
        output: OutputPolicy | None = None,
        **celery_settings: Any,
    ) -> None:
        """Open the cluster on the broker and the result backend at these URLs.

        Redis and Valkey can be both: then one URL is enough. `celery_settings` are settings of the Celery app that is
        made here; `Cluster.from_app` takes your own app, and explains the other options. Raise `InvalidConfig` for
        a URL that cannot be used.
        """
        config, telemetry = config or Config(), telemetry or Telemetry()
        backend = backend or same_server(broker)
        app = make_app(
            broker_url=broker, result_backend=backend, operation_timeout=config.operation_timeout, **celery_settings
        )
        check_kinds(app, broker=broker, backend=backend)
        self._compose(
            app=app,
            config=config,
            late_binding=late_binding,
            make_factory=partial(signed_message_factory, signing_key, telemetry, cap_of(output)),
            terminate=terminate,
            control_channel=control_channel,
            telemetry=telemetry,
            output=output,
        )

    @classmethod
    def from_app(
        cls,
        app: Celery,
        *,
        config: Config | None = None,
        late_binding: bool = True,
        signing_key: str | None = None,
        message_factory: MessageFactory | None = None,
        terminate: bool = False,
        control_channel: bool = True,
        telemetry: Telemetry | None = None,
        output: OutputPolicy | None = None,
    ) -> Self:
        """Open the cluster of a Celery app.

        - `config` is that of the executor. Its `operation_timeout` also bounds each operation of the cluster on the
          broker and the result backend.
        - With `late_binding` the executor sends to a queue no more tasks than the live workers of the queue can take.
          Without it, the executor sends tasks while slots are open.
        - With `signing_key` messages are signed, for workers that have the key, too. It may have several keys with
          commas between them: the first one signs.
        - `message_factory` makes the messages instead. Then `signing_key` has no effect.
        - With `terminate` a revoke also ends tasks that run on plain Celery workers.
        - With `control_channel`, `celeriac cancel` and `celeriac explain` reach the executor over the broker.
        - `telemetry` collects what the executor measures; by default the cluster has one of its own.
        - With `output` the workers send what commands write, and it is kept in the folder of this policy as they write
          it. The result backend must be Redis, Valkey or a database.
        """
        cluster, telemetry = cls.__new__(cls), telemetry or Telemetry()
        cluster._compose(
            app=app,
            config=config or Config(),
            late_binding=late_binding,
            make_factory=(lambda _: message_factory)
            if message_factory is not None
            else partial(signed_message_factory, signing_key, telemetry, cap_of(output)),
            terminate=terminate,
            control_channel=control_channel,
            telemetry=telemetry,
            output=output,
        )
        return cluster

    def _compose(
        self,
        *,
        app: Celery,
        config: Config,
        late_binding: bool,
        make_factory: Callable[[LimitsOf], MessageFactory],
        terminate: bool,
        control_channel: bool,
        telemetry: Telemetry,
        output: OutputPolicy | None,
    ) -> None:
        self.telemetry = telemetry
        """All that the executor of this cluster measures. Any thread may read it."""

        timeout = config.operation_timeout
        self._config, self.app = config, app
        self._return_to_first = ReturnToFirst(app, timeout=timeout)
        self._places = open_places_of(app, config) if config.has_shared_limits else None
        self._publisher = publisher_for(app, message_factory=make_factory(self._limits_of))
        self._results = results_for(app, timeout=timeout, trigger=config.result_trigger)
        claims = claims_for(app, timeout=timeout)
        self._revoker = ControlRevoker(
            app,
            claims=claims_for(app, timeout=timeout),
            timeout=timeout,
            terminate=terminate,
            on_revoked=self._results.hint,
        )
        self._leases = LeaseMonitor(claims, on_news=self._results.wake) if claims is not None else None
        self._workers = WorkerMonitor(app, leases=self._leases, timeout=timeout)
        self.telemetry.set_source("workers", partial(read_workers, self._workers, self._leases))
        self._capacity = self._workers if late_binding else None
        self._lost_task_detector = lost_task_detector_for(
            app, workers=self._workers, leases=self._leases, timeout=timeout, on_found=self._results.wake
        )
        self._outputs = None if cap_of(output) is None or output is None else self._collector(output)
        self._results.outputs = self._outputs
        is_reachable = control_channel and has_mailboxes(app)
        self._control = BrokerControlServer(app, wake=self._results.wake, timeout=timeout) if is_reachable else None

    def _open_places(self) -> SharedPlaces:
        """Return the places of limits: an executor needs them from the first limit on."""
        if self._places is None:
            self._places = open_places_of(self.app, self._config)
        return self._places

    def _limits_of(self, task_id: str) -> list[tuple[str, int, float | None]]:
        """Return the limits of a task, as its message carries them."""
        return [] if self._places is None else self._places.limits_of(task_id)

    def _collector(self, policy: OutputPolicy) -> OutputCollector:
        """Return what brings the output of commands here. Raise `InvalidConfig` if the result backend cannot."""
        store = output_store_for(self.app, timeout=self._config.operation_timeout)
        if store is None:
            problem = f"{scheme_of(self.app.conf.result_backend)!r} cannot carry the output of commands"
            raise InvalidConfig("backend", problem, "use Redis, Valkey or a database, or ask for no output")
        return OutputCollector(store, policy, on_complete=self._results.hint)

    def executor(self, config: Config | None = None, *, ledger: Ledger | None = None) -> CeleryExecutor:
        """Return the executor, with the cluster's own `Config` unless another is given. Raise `InvalidConfig` for one
        with limits of keys or rates if the result backend cannot hold them.

        With `ledger` the executor can resume after a crash: see `celeriac.ledger`.
        """
        return CeleryExecutor(
            config or self._config,
            publisher=self._publisher,
            results=self._results,
            revoker=self._revoker,
            capacity=self._capacity,
            lost_task_detector=self._lost_task_detector,
            control_channel=self._control.requests if self._control is not None else None,
            ledger=ledger,
            open_places=self._open_places,
            threads=thread_health,
            telemetry=self.telemetry,
        )

    def capacity(self) -> Mapping[str, int] | None:
        """Return how many tasks the live workers of each queue run at once; None while that is not known."""
        return self._workers.by_queue()

    def worker_with(self, task_id: str) -> str | None:
        """Return the live worker that has received the task, or runs it, by the leases; None if none says so."""
        leases = self._leases.live() if self._leases is not None else ()
        return next((each.name for each in leases if task_id in each.held or task_id in each.running), None)

    def wake(self) -> None:
        """End the executor's current `wait`. May be called from a signal handler or another thread."""
        self._results.wake()

    def stop_commands(self) -> None:
        """Do nothing: commands run on workers elsewhere, and go on."""

    def continue_commands(self) -> None:
        """Do nothing: no command was stopped."""

    def close(self) -> None:
        """Close the connections to broker and result backend. Tasks in flight stay in flight."""
        self._return_to_first.close()
        if self._control is not None:
            self._control.stop()
        self._publisher.close()
        if self._places is not None:
            self._places.close()
        self._revoker.close()
        if self._lost_task_detector is not None:
            self._lost_task_detector.close()
        self._workers.close()
        if self._leases is not None:
            self._leases.close()
        if self._control is not None:
            self._control.close()
        if self._outputs is not None:
            self._outputs.close()
        self._results.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def cap_of(output: OutputPolicy | None) -> int | None:
    """Return how many bytes of each stream the workers send; None if they send nothing."""
    return None if output is None or output.directory is None else output.cap


def open_places_of(app: Celery, config: Config) -> SharedPlaces:
    """Return the places of limits. Raise `InvalidConfig` for a result backend that cannot hold them."""
    from celeriac.cluster.shared_places import SharedPlaces  # late: few executors have such limits

    if (places := places_for(app, timeout=config.operation_timeout)) is None:
        problem = "it cannot keep limits of keys and rates"
        raise InvalidConfig("backend", problem, "give Redis, Valkey or a database, or leave these limits out")
    return SharedPlaces(places, timeout=config.operation_timeout)


def same_server(broker: str) -> str:
    """Return the broker's URL for the result backend. Raise `InvalidConfig` for a broker that keeps no results."""
    try:
        return default_backend(broker)
    except InvalidConfig as error:
        remedy = "pass backend=, such as 'redis://HOST/0' or 'db+postgresql+psycopg://USER:PASSWORD@HOST/NAME'"
        raise InvalidConfig("backend", error.problem, remedy) from None
