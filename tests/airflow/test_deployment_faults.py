"""Faults of servers and parts in the middle of a run of a whole Airflow. With CELERIAC_LONG=1 outages are longer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from celeriac.backend.claims import claims_for
from celeriac.broker.app import make_app
from tests.airflow.deployment import (
    CHOSEN_PARTS,
    OURS,
    START_TIMEOUT,
    TASKS,
    Deployment,
    check_run,
    check_slots_are_free,
    deployment_of,
    expected_starts,
    reporting,
    wait_through_fault,
)
from tests.support.cli_runner import until
from tests.support.long import LONG
from tests.support.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.deployment

BROKER_OUTAGE = 60.0 if LONG else 8.0  # seconds
BACKEND_OUTAGE = 45.0 if LONG else 8.0  # seconds
CONCURRENCY = 4  # processes of the worker
SLOTS = (
    4 * CONCURRENCY
)  # of the scheduler: a worker holds tasks that it has not started, and a slot that leaks is noticed

SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": str(SLOTS),
    "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "2",
    # The executor must notice lost tasks without the help of these timeouts.
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "3600",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "3600",
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
    executor, worker = CHOSEN_PARTS or (OURS, OURS)
    parts = {"broker": shared_redis.url, "backend": backend.url, "executor": executor, "worker": worker}
    with deployment_of(folder, postgres, **parts, **SETTINGS) as deployment:
        yield deployment


@pytest.fixture
def airflow(shared: Deployment, shared_redis: RedisServer, backend: RedisServer) -> Deployment:
    if not shared.has_parts():
        shared_redis.empty()
        backend.empty()
        shared.change()
    return shared


def start_run(airflow: Deployment, run: str) -> None:
    """Start a run, and wait until some tasks have ended and some are running."""
    airflow.trigger(run)
    until(lambda: airflow.states(run)["success"] >= CONCURRENCY, "the first ends", START_TIMEOUT)
    until(lambda: airflow.states(run)["running"] >= 2, "running tasks", START_TIMEOUT)


def test_no_task_fails_while_the_broker_is_down(airflow, shared_redis):
    with reporting(airflow):
        start_run(airflow, "broker")
        shared_redis.kill()
        wait_through_fault(BROKER_OUTAGE, airflow)
        shared_redis.start()
        check_run(airflow, "broker")


def test_scheduler_survives_an_outage_of_the_result_backend(airflow, backend):
    with reporting(airflow):
        start_run(airflow, "backend")
        backend.kill()
        wait_through_fault(BACKEND_OUTAGE, airflow)
        backend.start()
        check_run(airflow, "backend")


def test_next_scheduler_adopts_tasks_of_a_killed_one(airflow):
    with reporting(airflow):
        start_run(airflow, "scheduler")
        airflow.kill("scheduler")
        airflow.start("scheduler")
        check_run(airflow, "scheduler")


@pytest.mark.parametrize("main_only", [False, True], ids=["with its children", "main process only"])
def test_tasks_of_a_killed_worker_run_again_and_slots_are_freed(airflow, main_only):
    run = f"worker-{main_only}"
    with reporting(airflow):
        start_run(airflow, run)
        airflow.kill("worker", main_only=main_only)
        airflow.start("worker")
        until(lambda: airflow.ended(run), "the end of the run", START_TIMEOUT)
        assert airflow.states(run) == {"success": TASKS}
        until(lambda: "callback_of_the_run" in airflow.starts(run), "the callback of the run", START_TIMEOUT)
        starts = airflow.starts(run)
        assert {name: times for name, times in starts.items() if times > 1} == {}  # of each try
        assert set(without_try_numbers(starts)) == set(without_try_numbers(expected_starts()))
        check_slots_are_free(airflow)


def test_killed_worker_costs_one_try_of_running_tasks_only(airflow, backend):
    with reporting(airflow):
        start_run(airflow, "lost")
        airflow.freeze("worker")
        ran, not_started = tries_in(airflow, "lost", "running"), unclaimed(airflow, "lost", backend)
        assert ran
        assert not_started
        airflow.kill("worker")
        airflow.start("worker")
        until(lambda: airflow.ended("lost"), "the end of the run", START_TIMEOUT)
        assert airflow.states("lost") == {"success": TASKS}
        ended = tries_in(airflow, "lost", "success")
        assert {task: ended[task] - tries for task, tries in ran.items()} == dict.fromkeys(ran, 1)
        assert {task: ended[task] - tries for task, tries in not_started.items()} == dict.fromkeys(not_started, 0)
        assert airflow.log_of("scheduler").count("lost: worker celery@") >= len(ran)
        check_slots_are_free(airflow)


def tries_in(airflow: Deployment, run: str, state: str) -> dict[str, int]:
    """Return the try number of each task in this state."""
    return {name: tries for name, tries, _ in tasks_in(airflow, run, state)}


def unclaimed(airflow: Deployment, run: str, backend: RedisServer) -> dict[str, int]:
    """Return the try number of each queued task that no worker has claimed."""
    queued = tasks_in(airflow, run, "queued")
    with closing(make_app(broker_url="memory://", result_backend=backend.url)) as app:
        claims = claims_for(app, timeout=2.0)
        assert claims is not None
        with closing(claims):
            claimed = claims.read([celery_id for _, _, celery_id in queued])
    return {name: tries for name, tries, celery_id in queued if celery_id not in claimed}


def tasks_in(airflow: Deployment, run: str, state: str) -> list[tuple[str, int, str]]:
    """Return the name, the try number and the Celery id of each task in this state."""
    columns = f"task_id, {airflow.index}, try_number, external_executor_id"
    rows = airflow.sql(f"SELECT {columns} FROM task_instance WHERE run_id = %s AND state = %s", run, state)
    return [(f"{task}[{index}]", tries, str(celery_id)) for task, index, tries, celery_id in rows]


def without_try_numbers(starts: Counter[str]) -> list[str]:
    return [re.sub(r"\.\d+", "", name) for name in starts]
