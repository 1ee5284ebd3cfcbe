"""A whole Airflow runs a DAG of 60 tasks: with our executor, our worker, or both, on Redis and on RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.deployment import CHOSEN, INCUMBENT, OURS, Deployment, check_run, deployed, reported
from tests.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.deployment

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


def check(airflow: Deployment, **chosen: str) -> None:
    with reported(airflow):
        if not airflow.is_as(**chosen):
            airflow.change(None, **chosen)
        run = "-".join([chosen["executor"], chosen["worker"], chosen["broker"][:5]])
        airflow.trigger(run)
        check_run(airflow, run)
