"""The public attributes of Airflow's own CeleryExecutor that other code may read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult

    from celeriac.airflow.submitted import SubmittedWorkloads


class PublicNames:
    """A base class of the executor."""

    supports_task_instance_uuid = False  # True from Airflow 3.4 on

    _cluster: Any
    _submitted: SubmittedWorkloads

    @property
    def celery_app(self) -> Celery:
        """The Celery app of this executor and its team."""
        app: Celery = self._cluster.app
        return app

    @property
    def workloads(self) -> dict[Any, AsyncResult]:
        """Celery's result of each workload in flight, by Airflow's key. A new dict: changes to it have no effect."""
        return {
            submitted.key: self.celery_app.AsyncResult(submitted.id)
            for submitted in self._submitted
            if submitted.workload is None
        }
