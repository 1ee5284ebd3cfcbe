"""What befalls a whole Airflow in the middle of a run. With CELERIAC_LONG=1 outages are as long as in earnest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.deployment import SLOW, Deployment, deployed
from tests.airflow.test_end_to_end import expected
from tests.command_line import until
from tests.servers import PostgresServer, RedisServer

LONG = os.environ.get("CELERIAC_LONG") == "1"
BROKER_AWAY = 60.0 if LONG else 8.0  # seconds
BACKEND_AWAY = 45.0 if LONG else 8.0  # seconds
AT_ONCE = 4  # slots of the scheduler, and processes of the worker: a slot that is not given back is missed


@pytest.fixture(scope="module")
def backend() -> Iterator[RedisServer]:
    with closing(RedisServer()) as server:
        yield server


@pytest.fixture(scope="module")
def airflow(
    tmp_path_factory: Any, shared_redis: RedisServer, backend: RedisServer, postgres: PostgresServer
) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("airflow")
    settings = {"AIRFLOW__CORE__PARALLELISM": str(AT_ONCE), "CELERIAC_TEST_SECONDS": "1"}
    with deployed(folder, postgres, broker=shared_redis.url, backend=backend.url, **settings) as deployment:
        yield deployment


def in_mid_run(airflow: Deployment, run: str) -> None:
    """Some tasks of a new run have ended, and some run."""
    (airflow.folder / "begun").unlink(missing_ok=True)
    airflow.trigger(run)
    until(lambda: airflow.states(run)["success"] >= AT_ONCE, "the first ends", SLOW)
    until(lambda: airflow.states(run)["running"] >= 2, "tasks that run", SLOW)


def to_the_end(airflow: Deployment, run: str) -> None:
    until(lambda: airflow.ended(run), "the end of the run", SLOW)
    assert airflow.states(run) == {"success": 60}


def wait_out(airflow: Deployment, seconds: float) -> None:
    """How long a fault lasts. The scheduler lives."""
    end = time.monotonic() + seconds

    def over() -> bool:
        assert airflow.lives("scheduler"), airflow.tail("scheduler")
        return time.monotonic() > end

    until(over, "the end of the fault", seconds + SLOW)


def test_no_task_fails_because_the_broker_was_away(airflow, shared_redis):
    in_mid_run(airflow, "broker")
    shared_redis.kill()
    wait_out(airflow, BROKER_AWAY)
    shared_redis.start()
    to_the_end(airflow, "broker")
    assert airflow.begun() == expected()


def test_the_scheduler_lives_without_a_result_backend(airflow, backend):
    in_mid_run(airflow, "backend")
    backend.kill()
    wait_out(airflow, BACKEND_AWAY)
    backend.start()
    to_the_end(airflow, "backend")
    assert airflow.begun() == expected()


def test_another_scheduler_adopts_what_a_killed_one_had_sent(airflow):
    in_mid_run(airflow, "scheduler")
    airflow.kill("scheduler")
    airflow.start("scheduler")
    to_the_end(airflow, "scheduler")
    assert airflow.begun() == expected()


def test_what_a_killed_worker_ran_runs_again_and_its_slots_are_free(airflow):
    in_mid_run(airflow, "worker")
    until(lambda: not airflow.states("worker")["queued"], "tasks that run, and none on its way", SLOW)
    airflow.kill("worker")
    airflow.start("worker")
    to_the_end(airflow, "worker")
    begun = airflow.begun()
    assert set(begun) >= set(expected())
    assert set(begun.values()) == {1}
