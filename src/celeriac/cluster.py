"""Celery workers on as many machines as there are: everything behind an executor but the workers themselves.

CeleryExecutor ─► publisher ─► broker ─► workers ─► result backend ─► results ─► CeleryExecutor
       ├──────── capacity: who is there to work ◄──────┤
       └──────── whereabouts: who has what was sent ◄──┘
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from celery import Celery

from celeriac.app import make_app
from celeriac.capacity import LiveWorkers
from celeriac.config import Config
from celeriac.executor import CeleryExecutor
from celeriac.publisher import publisher_for
from celeriac.publisher.call import CallOf, call_of
from celeriac.publisher.revoker import ControlRevoker
from celeriac.results import results_for
from celeriac.whereabouts import whereabouts_for


class Cluster:
    """Use as a context manager, or call `close`. One cluster object serves one executor."""

    def __init__(
        self,
        config: Config,
        *,
        app: Celery,
        late_binding: bool = True,
        call_of: CallOf = call_of,
        terminate: bool = False,
    ) -> None:
        """`app` names broker and result backend: see `make_app`.

        `late_binding` sends a queue no more than its live workers can take, which is asked of them; without it tasks
        are sent as long as slots are open. `terminate` has a revoke end what runs on plain Celery workers too.
        """
        timeout = config.operation_timeout
        self._config, self.app = config, app
        self._publisher = publisher_for(app, call_of=call_of)
        self._results = results_for(app, timeout=timeout)
        self._revoker = ControlRevoker(app, timeout=timeout, terminate=terminate)
        self._workers = LiveWorkers(app, timeout=timeout)
        self._late_binding = late_binding
        answers = app.conf.worker_enable_remote_control  # else no worker says what it has
        self._whereabouts = (
            whereabouts_for(app, self._workers, timeout=timeout, on_found=self._results.wake) if answers else None
        )

    @classmethod
    def at(
        cls,
        broker_url: str,
        result_backend: str,
        config: Config | None = None,
        *,
        late_binding: bool = True,
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
        return cls(config, app=app, late_binding=late_binding)

    def executor(self) -> CeleryExecutor:
        return CeleryExecutor(
            self._config,
            publisher=self._publisher,
            results=self._results,
            revoker=self._revoker,
            capacity=self._workers if self._late_binding else None,
            whereabouts=self._whereabouts,
        )

    def wake(self) -> None:
        """End a `wait` of the executor. May be called from a signal handler or another thread."""
        self._results.wake()

    def close(self) -> None:
        """Let go of broker and backend. What is out stays out."""
        self._publisher.close()
        self._revoker.close()
        if self._whereabouts is not None:
            self._whereabouts.close()
        self._workers.close()
        self._results.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
