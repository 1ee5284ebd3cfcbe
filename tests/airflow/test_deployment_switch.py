"""Scheduler and workers are switched to ours, one after the other, and back, in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.deployment import (
    DAG,
    HELD_DAG,
    HELD_TASKS,
    OURS,
    PARTS,
    PATIENT,
    PLAIN_DAG,
    START_TIMEOUT,
    UPSTREAM,
    Deployment,
    check_plain_run,
    check_run,
    deployment_of,
    kind_of,
    reporting,
)
from tests.support.cli_runner import until
from tests.support.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.deployment

WORKERS = "worker", "worker.2"
SLOTS = 8
"""Of both workers. The executor has 16."""

ORDERS = {
    "scheduler_first": ["scheduler", *WORKERS],
    "workers_first": [*WORKERS, "scheduler"],
    "half_of_the_workers": ["worker", "scheduler"],
}
DIRECTIONS = {"there": (UPSTREAM, OURS), "back": (OURS, UPSTREAM)}
DAGS = DAG, PLAIN_DAG, HELD_DAG
SETTINGS = {**PATIENT, "CELERIAC_TEST_SECONDS": "1"}


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: Any, shared_redis: RedisServer, postgres: PostgresServer) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("airflow")
    parts = {"broker": shared_redis.url, "backend": postgres.url, "executor": UPSTREAM, "worker": UPSTREAM}
    with deployment_of(folder, postgres, parts=(*PARTS, "worker.2"), dags=DAGS, **parts, **SETTINGS) as deployment:
        yield deployment


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_task_runs_once_through_a_switch(airflow, order, direction):
    before, after = DIRECTIONS[direction]
    steps = [f"{order}-{direction}-{step}" for step in range(len(ORDERS[order]))]
    choices = {"executor": before, "worker": before, "worker.2": before}
    with reporting(airflow):
        if not airflow.has_parts(**choices):
            airflow.change(None, **choices)
        for run, part in zip(steps, ORDERS[order], strict=True):
            airflow.trigger(run, DAG if run == steps[0] else PLAIN_DAG)
            until(partial(is_at_work, airflow, run), "ends, and running tasks", START_TIMEOUT)
            switch(airflow, part, after, f"{run}-held")
        check_run(airflow, steps[0])
        for run in steps[1:]:
            check_plain_run(airflow, run)
        for run in steps:
            check_plain_run(airflow, f"{run}-held", HELD_TASKS, "held")


def is_at_work(airflow: Deployment, run: str) -> bool:
    states = airflow.states(run)
    assert states.total() > states["success"] or not states, "the run has ended too early for this test"
    return states["success"] >= 1 and states["running"] >= 2


def switch(airflow: Deployment, part: str, to: str, run: str) -> None:
    """Switch a part while every slot of the workers is taken by a task that ends later, and other tasks are sent.

    The next scheduler adopts them all before any ends. A worker must end its own before it exits.
    """
    airflow.trigger(run, HELD_DAG)
    in_flight = {"running": SLOTS, "queued": HELD_TASKS - SLOTS}
    until(lambda: airflow.states(run) == in_flight, "tasks in flight", START_TIMEOUT)
    if kind_of(part) == "worker":
        airflow.switch(part, to, after_term=partial(airflow.release, run))
        return
    ((earlier,),) = airflow.sql("SELECT max(id) FROM job WHERE job_type = 'SchedulerJob'")
    query = "SELECT 1 FROM task_instance WHERE run_id = %s AND queued_by_job_id > %s"
    airflow.switch(part, to)
    until(lambda: len(airflow.sql(query, run, earlier)) == HELD_TASKS, "adoption of all tasks in flight", START_TIMEOUT)
    assert airflow.states(run) == in_flight
    airflow.release(run)
