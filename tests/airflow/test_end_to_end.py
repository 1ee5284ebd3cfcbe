"""A whole Airflow runs a DAG of 60 tasks with our executor, our worker, or both, on Redis and on RabbitMQ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.deployment import (
    ADMIN,
    CHOSEN_PARTS,
    OURS,
    START_TIMEOUT,
    UPSTREAM,
    USERS,
    Deployment,
    check_run,
    check_slots_are_free,
    deployment_of,
    reporting,
)
from tests.support.cli_runner import until
from tests.support.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.deployment

HAS_DEADLINES = not version("apache-airflow-core").startswith("3.1.")
PARTS = [CHOSEN_PARTS] if CHOSEN_PARTS else [(OURS, OURS), (OURS, UPSTREAM), (UPSTREAM, OURS)]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: Any, shared_redis: RedisServer, postgres: PostgresServer) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("airflow")
    executor, worker = PARTS[0]
    servers = {"broker": shared_redis.url, "backend": postgres.url}
    with deployment_of(folder, postgres, **servers, executor=executor, worker=worker) as deployment:
        yield deployment


@pytest.mark.parametrize(("executor", "worker"), PARTS)
def test_every_task_runs_once(airflow, shared_redis, executor, worker):
    run_dag(airflow, executor=executor, worker=worker, broker=shared_redis.url)


@pytest.mark.parametrize(("executor", "worker"), PARTS[:1])
def test_the_page_of_celeriac_in_airflows_own(airflow, shared_redis, executor, worker):
    query = (
        f"SELECT dag_id, run_id, task_id FROM task_instance WHERE state = 'success' AND {airflow.index} = -1 LIMIT 1"
    )
    ended = partial(airflow.sql, query)
    with reporting(airflow):
        set_parts(airflow, executor=executor, worker=worker, broker=shared_redis.url)
        if not ended():
            airflow.trigger("page")
            until(ended, "the end of a task", START_TIMEOUT)
        task = "/celeriac/task/{}/{}/{}/-1".format(*ended()[0])
        until(lambda: "live</td>" in airflow.page("/celeriac/", ADMIN)[1], "a live worker")
        for user in USERS:
            status, overview = airflow.page("/celeriac/", user)
            assert (status, '<th scope="row">a</th>' in overview) == (200, True)
            status, page = airflow.page(task, user)
            assert (status, "It has ended: success after" in page) == (200, True)
        assert [airflow.page(path)[0] for path in ("/celeriac/", task)] == [401, 401]
        assert "Celeriac 0" in airflow.log_of("scheduler")
        run = task.rpartition("/")[0].rpartition("/")[0].replace("/task/", "/run/")
        for user in USERS:
            status, page = airflow.page(run, user)
            assert (status, "<h1>" in page) == (200, True)
        assert airflow.page(run)[0] == 401


@pytest.mark.parametrize(("executor", "worker"), PARTS[:1])
def test_the_doctor_finds_that_all_parts_agree(airflow, shared_redis, executor, worker):
    with reporting(airflow):
        set_parts(airflow, executor=executor, worker=worker, broker=shared_redis.url)
        checks = ("scheduler", "api-server", "scheduler-agrees", "api-server-agrees", "workers-known", "workers-reply")

        def levels() -> list[str]:
            output = airflow.airflow("celeriac", "doctor", "-o", "json")
            return [each["level"] for each in json.loads(output)["findings"] if each["check"] in checks]

        until(lambda: levels() == ["ok"] * len(checks), "the agreement of all", START_TIMEOUT)


@pytest.mark.parametrize(("executor", "worker"), PARTS[:1])
def test_every_task_runs_once_on_rabbitmq(airflow, rabbit, executor, worker):
    run_dag(airflow, executor=executor, worker=worker, broker=rabbit.url)


@pytest.mark.skipif(not HAS_DEADLINES, reason="Airflow 3.1 has no callbacks for executors")
def test_worker_runs_the_callback_of_a_missed_deadline(airflow, shared_redis):
    with reporting(airflow):
        set_parts(airflow, executor=PARTS[0][0], worker=PARTS[0][1], broker=shared_redis.url)
        until(lambda: airflow.sql("SELECT 1 FROM serialized_dag WHERE dag_id = 'late'"), "the DAG", START_TIMEOUT)
        airflow.trigger("late", "late")
        until(lambda: airflow.ended("late"), "the end of the run", START_TIMEOUT)
        assert airflow.run_state("late") == "success"
        assert airflow.starts("late") == {"task": 1, "deadline_missed": 1}
        until(lambda: airflow.sql("SELECT 1 FROM callback WHERE state = 'success'"), "the callback's success")
        check_slots_are_free(airflow)


def run_dag(airflow: Deployment, **choices: str) -> None:
    with reporting(airflow):
        set_parts(airflow, **choices)
        run = "-".join([choices["executor"], choices["worker"], choices["broker"][:5]])
        airflow.trigger(run)
        check_run(airflow, run)


def set_parts(airflow: Deployment, **choices: str) -> None:
    if not airflow.has_parts(**choices):
        airflow.change(None, **choices)
