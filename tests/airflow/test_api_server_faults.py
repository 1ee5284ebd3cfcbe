"""The API server of a whole Airflow is unavailable in the middle of a run. With CELERIAC_LONG=1 for longer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.airflow.api_server import ApiServer, Behaviour, api_server
from tests.airflow.deployment import (
    Deployment,
    check_plain_run,
    our_deployment_on_redis,
    reporting,
    wait_through_fault,
)
from tests.support.long import LONG
from tests.support.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.deployment

OUTAGE = 60.0 if LONG else 15.0  # seconds
RESTART = 25.0 if LONG else 5.0  # seconds between the kill of the API server and its next start
TIME_BEFORE = 4.0  # seconds from the trigger to the fault: some tasks are running, others wait

SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "64",  # the whole run is sent at once
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "300",  # Airflow's default
}


@pytest.fixture(scope="module")
def proxy() -> Iterator[ApiServer]:
    with api_server(behaviour=Behaviour.FORWARD) as server:
        yield server


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: Any, shared_redis: RedisServer, postgres: PostgresServer) -> Iterator[Deployment]:
    with our_deployment_on_redis(tmp_path_factory, shared_redis, postgres, SETTINGS) as deployment:
        yield deployment


def start_run(airflow: Deployment, run: str) -> None:
    airflow.trigger(run, "plain")
    time.sleep(TIME_BEFORE)  # the fault is meant to come at this time, whatever the run has done by then


def test_every_task_succeeds_although_the_api_server_is_frozen(airflow):
    with reporting(airflow):
        start_run(airflow, "frozen")
        airflow.freeze("api-server")
        wait_through_fault(OUTAGE, airflow)
        airflow.resume("api-server")
        check_plain_run(airflow, "frozen")


def test_every_task_succeeds_although_the_api_server_is_killed(airflow):
    with reporting(airflow):
        start_run(airflow, "killed")
        airflow.kill("api-server")
        wait_through_fault(RESTART, airflow)
        airflow.start("api-server")
        check_plain_run(airflow, "killed")


def test_every_task_succeeds_although_a_proxy_answers_503(airflow, proxy):
    with reporting(airflow):
        proxy.target = f"127.0.0.1:{airflow.api_port}"
        airflow.change({"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": proxy.url})
        start_run(airflow, "refused")
        proxy.behaviour = Behaviour.UNAVAILABLE
        wait_through_fault(OUTAGE, airflow)
        proxy.behaviour = Behaviour.FORWARD
        check_plain_run(airflow, "refused")
