"""What befalls a whole Airflow in the middle of a run. With CELERIAC_LONG=1 outages are as long as in earnest."""

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
from tests.support.cli_runner import until
from tests.support.long import LONG
from tests.support.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.deployment

BROKER_AWAY = 60.0 if LONG else 8.0  # seconds
BACKEND_AWAY = 45.0 if LONG else 8.0  # seconds
AT_ONCE = 4  # processes of the worker
SLOTS = 4 * AT_ONCE  # of the scheduler, so that a worker has received what it has not begun; one that leaks is seen

SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": str(SLOTS),
    "AIRFLOW__CELERY__WORKER_PREFETCH_MULTIPLIER": "2",
    # Nothing is owed to these: what they would find, the executor has found long before.
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


def test_a_killed_worker_costs_a_try_of_what_it_ran_and_none_of_what_it_had_not_begun(airflow, backend):
    with reported(airflow):
        in_mid_run(airflow, "lost")
        airflow.freeze("worker")
        ran, waited = tries_in(airflow, "lost", "running"), unclaimed(airflow, "lost", backend)
        assert ran
        assert waited
        airflow.kill("worker")
        airflow.start("worker")
        until(lambda: airflow.ended("lost"), "the end of the run", SLOW)
        assert airflow.states("lost") == {"success": TASKS}
        ended = tries_in(airflow, "lost", "success")
        assert {task: ended[task] - tries for task, tries in ran.items()} == dict.fromkeys(ran, 1)
        assert {task: ended[task] - tries for task, tries in waited.items()} == dict.fromkeys(waited, 0)
        assert airflow.said("scheduler").count("lost: worker celery@") >= len(ran)
        check_slots(airflow)


def tries_in(airflow: Deployment, run: str, state: str) -> dict[str, int]:
    """The try of each task that is in this state."""
    return {name: tries for name, tries, _ in tasks_in(airflow, run, state)}


def unclaimed(airflow: Deployment, run: str, backend: RedisServer) -> dict[str, int]:
    """The try of each queued task that no worker has claimed."""
    queued = tasks_in(airflow, run, "queued")
    with closing(make_app(broker_url="memory://", result_backend=backend.url)) as app:
        claims = claims_for(app, timeout=2.0)
        assert claims is not None
        with closing(claims):
            claimed = claims.read([celery_id for _, _, celery_id in queued])
    return {name: tries for name, tries, celery_id in queued if celery_id not in claimed}


def tasks_in(airflow: Deployment, run: str, state: str) -> list[tuple[str, int, str]]:
    """The name, the try and the Celery id of each task that is in this state."""
    columns = f"task_id, {airflow.index}, try_number, external_executor_id"
    found = airflow.sql(f"SELECT {columns} FROM task_instance WHERE run_id = %s AND state = %s", run, state)
    return [(f"{task}[{index}]", tries, str(celery_id)) for task, index, tries, celery_id in found]


def of_any_try(begun: Counter[str]) -> list[str]:
    return [re.sub(r"\.\d+", "", name) for name in begun]
