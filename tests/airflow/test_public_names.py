"""The public attributes of Airflow's own CeleryExecutor that other code reads."""

from __future__ import annotations

from types import SimpleNamespace

from celery import Celery
from celery.result import AsyncResult

from celeriac.airflow.public_names import PublicNames
from celeriac.airflow.submitted import SubmittedWorkload, SubmittedWorkloads


def test_workloads_are_those_that_the_broker_has_by_key():
    executor = PublicNames()
    executor._cluster, executor._submitted = (
        SimpleNamespace(app=Celery("app", set_as_current=False)),
        SubmittedWorkloads(),
    )
    executor._submitted.add(SubmittedWorkload("id-1", "key 1"))
    executor._submitted.add(SubmittedWorkload("id-2", "key 2", workload="not sent yet"))
    assert executor.workloads == {"key 1": AsyncResult("id-1", app=executor.celery_app)}
