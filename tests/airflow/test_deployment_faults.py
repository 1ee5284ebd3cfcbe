"""What befalls a whole Airflow in the middle of a run. With CELERIAC_LONG=1 outages are as long as in earnest."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.deployment import (
    CHOSEN,
    OURS,
    SLOW,
    TASKS,
    Deployment,
    check_run,
    check_slots,
    deployed,
    expected,
    reported,
    wait_out,
)
from tests.command_line import until
from tests.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.deployment

LONG = os.environ.get("CELERIAC_LONG") == "1"
BROKER_AWAY = 60.0 if LONG else 8.0  # seconds
BACKEND_AWAY = 45.0 if LONG else 8.0  # seconds
AT_ONCE = 4  # slots of the scheduler, and processes of the worker: a slot that is not given back is missed

SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": str(AT_ONCE),
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "100",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "CELERIAC_TEST_SECONDS": "1",
}


@pytest.fixture(scope="module")
def backend() -> Iterator[RedisServer]:
    with closing(RedisServer()) as server:
        yield server


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: Any, shared_redis: RedisServer, backend: RedisServer, postgres: PostgresServer
) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("airflow")
    executor, worker = CHOSEN or (OURS, OURS)
    parts = {"broker": shared_redis.url, "backend": backend.url, "executor": executor, "worker": worker}
    with deployed(folder, postgres, **parts, **SETTINGS) as deployment:
        yield deployment


@pytest.fixture
def airflow(shared: Deployment, shared_redis: RedisServer, backend: RedisServer) -> Deployment:
    if not shared.is_as():
        shared_redis.empty()
        backend.empty()
        shared.change()
    return shared


def in_mid_run(airflow: Deployment, run: str) -> None:
    """Some tasks of a new run have ended, and some run."""
    airflow.trigger(run)
    until(lambda: airflow.states(run)["success"] >= AT_ONCE, "the first ends", SLOW)
    until(lambda: airflow.states(run)["running"] >= 2, "tasks that run", SLOW)


def test_no_task_fails_because_the_broker_was_away(airflow, shared_redis):
    with reported(airflow):
        in_mid_run(airflow, "broker")
        shared_redis.kill()
        wait_out(BROKER_AWAY, airflow)
        shared_redis.start()
        check_run(airflow, "broker")


def test_the_scheduler_lives_without_a_result_backend(airflow, backend):
    with reported(airflow):
        in_mid_run(airflow, "backend")
        backend.kill()
        wait_out(BACKEND_AWAY, airflow)
        backend.start()
        check_run(airflow, "backend")


def test_another_scheduler_adopts_what_a_killed_one_had_sent(airflow):
    with reported(airflow):
        in_mid_run(airflow, "scheduler")
        airflow.kill("scheduler")
        airflow.start("scheduler")
        check_run(airflow, "scheduler")


@pytest.mark.parametrize("main_only", [False, True], ids=["with its children", "but its children"])
def test_what_a_killed_worker_ran_runs_again_and_its_slots_are_free(airflow, main_only):
    run = f"worker-{main_only}"
    with reported(airflow):
        in_mid_run(airflow, run)
        airflow.kill("worker", main_only=main_only)
        airflow.start("worker")
        until(lambda: airflow.ended(run), "the end of the run", SLOW)
        assert airflow.states(run) == {"success": TASKS}
        until(lambda: "callback_of_the_run" in airflow.begun(run), "the callback of the run", SLOW)
        begun = airflow.begun(run)
        assert {name: times for name, times in begun.items() if times > 1} == {}  # of each try
        assert set(of_any_try(begun)) == set(of_any_try(expected()))
        check_slots(airflow)


def of_any_try(begun: Counter[str]) -> list[str]:
    return [re.sub(r"\.\d+", "", name) for name in begun]
