"""Celery workers on as many machines as there are: everything behind an executor but the workers themselves.

CeleryExecutor ─► publisher ─► broker ─► workers ─► result backend ─► results ─► CeleryExecutor
       ├──────── capacity: who is there to work ◄──────┤
       ├──────── whereabouts: who has what was sent ◄──┘
       └──────── desk: what others ask of it, over the broker
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from celery import Celery

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.failure_detector import FailureDetector
from celeriac.backend.results import results_for
from celeriac.broker.app import make_app
from celeriac.broker.publishers import publisher_for
from celeriac.broker.task_message import MessageFactory, signed_message_factory
from celeriac.cluster.lost_tasks import lost_task_detector_for
from celeriac.cluster.revoker import ControlRevoker
from celeriac.cluster.worker_registry import WorkerRegistry
from celeriac.config.executor_config import Config
from celeriac.control.broker_server import BrokerControlServer
from celeriac.control.mailbox import has_mailboxes
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import Ledger


class Cluster:
    """Use as a context manager, or call `close`. One cluster object serves one executor."""

    def __init__(
        self,
        config: Config,
        *,
        app: Celery,
        late_binding: bool = True,
        call_of: MessageFactory | None = None,
        signing_key: str | None = None,
        terminate: bool = False,
        desk: bool = True,
    ) -> None:
        """`app` names broker and result backend: see `make_app`.

        `late_binding` sends a queue no more than its live workers can take, which is asked of them; without it tasks
        are sent as long as slots are open. With `signing_key` messages are signed, for workers that have it too; of
        several, with commas between them, with the first. `call_of` makes messages of another kind. `terminate` has a
        revoke end what runs on plain Celery workers too. With `desk`, `celeriac cancel` and `celeriac explain` reach
        the executor over the broker.
        """
        timeout = config.operation_timeout
        self._config, self.app = config, app
        self._publisher = publisher_for(app, call_of=call_of or signed_message_factory(signing_key))
        self._results = results_for(app, timeout=timeout)
        claims = claims_for(app, timeout=timeout)
        self._revoker = ControlRevoker(
            app,
            claims_for(app, timeout=timeout),
            timeout=timeout,
            terminate=terminate,
            on_revoked=self._results.hint,
        )
        self._leases = FailureDetector(claims, on_alarm=self._results.wake) if claims is not None else None
        self._workers = WorkerRegistry(app, self._leases, timeout=timeout)
        self._late_binding = late_binding
        self._whereabouts = lost_task_detector_for(
            app, self._workers, self._leases, timeout=timeout, on_found=self._results.wake
        )
        has_desk = desk and has_mailboxes(app)
        self._desk = BrokerControlServer(app, wake=self._results.wake, timeout=timeout) if has_desk else None

    @classmethod
    def at(
        cls,
        broker_url: str,
        result_backend: str,
        config: Config | None = None,
        *,
        late_binding: bool = True,
        signing_key: str | None = None,
        **settings: Any,
    ) -> Self:
        """The cluster at these addresses. `settings` are Celery's own."""
        config = config or Config()
        app = make_app(
            broker_url=broker_url,
            result_backend=result_backend,
            operation_timeout=config.operation_timeout,
            **settings,
        )
        return cls(config, app=app, late_binding=late_binding, signing_key=signing_key)

    def executor(self, ledger: Ledger | None = None) -> CeleryExecutor:
        """With `ledger`, an executor that remembers: see `celeriac.ledger`."""
        return CeleryExecutor(
            self._config,
            publisher=self._publisher,
            results=self._results,
            revoker=self._revoker,
            capacity=self._workers if self._late_binding else None,
            lost_task_detector=self._whereabouts,
            control_channel=self._desk.tray if self._desk is not None else None,
            ledger=ledger,
        )

    def capacity(self) -> Mapping[str, int] | None:
        """How many tasks the live workers of each queue run at once; None while that is not known."""
        return self._workers.by_queue()

    def wake(self) -> None:
        """End a `wait` of the executor. May be called from a signal handler or another thread."""
        self._results.wake()

    def close(self) -> None:
        """Let go of broker and backend. What is out stays out."""
        if self._desk is not None:
            self._desk.stop()
        self._publisher.close()
        self._revoker.close()
        if self._whereabouts is not None:
            self._whereabouts.close()
        self._workers.close()
        if self._leases is not None:
            self._leases.close()
        if self._desk is not None:
            self._desk.close()
        self._results.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
