"""A whole Airflow runs a DAG of 60 tasks: with our executor, our worker, or both, on Redis and on RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.deployment import (
    CHOSEN,
    INCUMBENT,
    OURS,
    SLOW,
    Deployment,
    check_run,
    check_slots,
    deployed,
    reported,
)
from tests.support.cli_runner import until
from tests.support.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.deployment

DEADLINES = not version("apache-airflow-core").startswith("3.1.")
PARTS = [CHOSEN] if CHOSEN else [(OURS, OURS), (OURS, INCUMBENT), (INCUMBENT, OURS)]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: Any, shared_redis: RedisServer, postgres: PostgresServer) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("airflow")
    executor, worker = PARTS[0]
    servers = {"broker": shared_redis.url, "backend": postgres.url}
    with deployed(folder, postgres, **servers, executor=executor, worker=worker) as deployment:
        yield deployment


@pytest.mark.parametrize(("executor", "worker"), PARTS)
def test_every_task_runs_once_and_ends_as_it_should(airflow, shared_redis, executor, worker):
    check(airflow, executor=executor, worker=worker, broker=shared_redis.url)


@pytest.mark.parametrize(("executor", "worker"), PARTS[:1])
def test_every_task_runs_once_on_rabbitmq(airflow, rabbit, executor, worker):
    check(airflow, executor=executor, worker=worker, broker=rabbit.url)


@pytest.mark.skipif(not DEADLINES, reason="Airflow 3.1 has no callbacks for executors")
def test_a_worker_is_told_that_a_deadline_was_missed(airflow, shared_redis):
    with reported(airflow):
        use(airflow, executor=PARTS[0][0], worker=PARTS[0][1], broker=shared_redis.url)
        until(lambda: airflow.sql("SELECT 1 FROM serialized_dag WHERE dag_id = 'late'"), "the DAG", SLOW)
        airflow.trigger("late", "late")
        until(lambda: airflow.ended("late"), "the end of the run", SLOW)
        assert airflow.run_state("late") == "success"
        assert airflow.begun("late") == {"task": 1, "deadline_missed": 1}
        until(lambda: airflow.sql("SELECT 1 FROM callback WHERE state = 'success'"), "the callback's success")
        check_slots(airflow)


def check(airflow: Deployment, **chosen: str) -> None:
    with reported(airflow):
        use(airflow, **chosen)
        run = "-".join([chosen["executor"], chosen["worker"], chosen["broker"][:5]])
        airflow.trigger(run)
        check_run(airflow, run)


def use(airflow: Deployment, **chosen: str) -> None:
    if not airflow.is_as(**chosen):
        airflow.change(None, **chosen)
