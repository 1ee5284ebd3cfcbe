"""Broker and result backend of a whole Airflow refuse for 20 s, while tasks of five seconds run. None has a retry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.airflow.deployment import (
    START_TIMEOUT,
    Deployment,
    check_plain_run,
    our_deployment_on_redis,
    reporting,
    wait_through_fault,
)
from tests.support.cli_runner import until
from tests.support.servers import PgBouncer, PostgresServer, RedisServer

pytestmark = pytest.mark.deployment

REFUSAL = 20.0  # seconds
CONCURRENCY = 4  # processes of the worker

SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "16",  # a slot that stays taken is noticed
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "300",  # Airflow's default
    "CELERIAC_TEST_PLAIN_SECONDS": "5",
}


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """The result backend. Airflow's own database is another server."""
    with closing(PostgresServer()) as server:
        yield server


@pytest.fixture(scope="module")
def pooler(database: PostgresServer) -> Iterator[PgBouncer]:
    with closing(PgBouncer(database)) as server:
        yield server


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: Any, shared_redis: RedisServer, postgres: PostgresServer) -> Iterator[Deployment]:
    with our_deployment_on_redis(tmp_path_factory, shared_redis, postgres, SETTINGS) as deployment:
        yield deployment


def start_run(airflow: Deployment, run: str) -> None:
    """Start a run, and wait until some tasks have ended and some are running."""
    airflow.trigger(run, "plain")
    until(lambda: airflow.states(run)["success"] >= CONCURRENCY, "the first ends", START_TIMEOUT)
    until(lambda: airflow.states(run)["running"] >= 2, "running tasks", START_TIMEOUT)


@pytest.mark.parametrize("refusal", ["full", "no_replicas"])
def test_no_task_fails_although_redis_refuses_writes(airflow, shared_redis, refusal):
    with reporting(airflow):
        start_run(airflow, refusal)
        with getattr(shared_redis, refusal)():
            wait_through_fault(REFUSAL, airflow)
        check_plain_run(airflow, refusal)


def test_no_task_fails_although_the_database_behind_pgbouncer_is_down(airflow, database, pooler):
    with reporting(airflow):
        airflow.change(backend=pooler.url)
        start_run(airflow, "pgbouncer")
        database.kill()
        wait_through_fault(REFUSAL, airflow)
        database.start()
        check_plain_run(airflow, "pgbouncer")
