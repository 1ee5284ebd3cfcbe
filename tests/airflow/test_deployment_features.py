"""Every way in which Airflow starts a task, in one deployment with two schedulers and two executors.

With CELERIAC_LONG=1, 500 tasks are mapped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.deployment import (
    CHOSEN_PARTS,
    EXECUTORS,
    OURS,
    PARTS,
    PATIENT,
    RUN_TIMEOUT,
    START_TIMEOUT,
    Deployment,
    check_slots_are_free,
    deployment_of,
    reporting,
)
from tests.support.cli_runner import until
from tests.support.long import LONG
from tests.support.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.deployment

DAGS = Path(__file__).parent / "feature_dags"
HAS_DEADLINES = not version("apache-airflow-core").startswith("3.1.")
MAPPED = 500 if LONG else 40
LOCAL, RANKED = 4, 6
TASKS_PER_CHILD = 5
SCHEDULERS = "scheduler", "scheduler.2"
EXECUTOR, WORKER = CHOSEN_PARTS or (OURS, OURS)
DAYS = 5

SETTINGS = {
    **PATIENT,
    "AIRFLOW__CORE__EXECUTOR": f"{EXECUTORS[EXECUTOR]},LocalExecutor",
    "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
    "AIRFLOW__CELERY__EXTRA_CELERY_CONFIG": json.dumps({"worker_max_tasks_per_child": TASKS_PER_CHILD}),
    "CELERIAC_TEST_MAPPED": str(MAPPED),
}


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: Any, shared_redis: RedisServer, postgres: PostgresServer) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("airflow")
    servers = {"broker": shared_redis.url, "backend": shared_redis.url}
    with deployment_of(
        folder,
        postgres,
        **servers,
        executor=EXECUTOR,
        worker=WORKER,
        parts=(*PARTS, "scheduler.2"),
        dags=("features", "held", "daily"),
        **SETTINGS,
    ) as deployment:
        deployment.api("pools", {"name": "one_slot", "slots": 1})
        yield deployment


def test_every_feature_while_two_schedulers_are_killed_in_turn(airflow):
    with reporting(airflow):
        airflow.trigger("all", "features")
        # A task of the local executor dies with its scheduler.
        until(lambda: local_ended(airflow), "the ends of the local executor's tasks", START_TIMEOUT)
        for n, scheduler in enumerate(SCHEDULERS, start=1):
            # The others are in flight, and wait in the broker or for a slot.
            until(partial(mapped_have_ended, airflow, n * MAPPED // 4), "some of the mapped tasks", RUN_TIMEOUT)
            airflow.kill(scheduler)
            until(partial(mapped_have_ended, airflow, n * MAPPED // 3), "tasks without it", RUN_TIMEOUT)
            airflow.start(scheduler)
        until(lambda: airflow.ended("all"), "the end of the run", RUN_TIMEOUT)
        assert airflow.run_state("all") == "success"
        until(lambda: "callback_of_the_run" in airflow.starts("all"), "the callback of the run", START_TIMEOUT)
        local, ours = local_starts(airflow), airflow.starts("all")
        assert ours - local == starts_of_features()
        # On a busy machine one scheduler declares the other dead: then Airflow starts a local task in a further try.
        assert set(local.values()) == {1}
        check_slots_are_free(airflow)
        check_order_of_weights(airflow)
        check_tasks_per_child(airflow)


def test_running_tasks_are_cleared_and_marked(airflow):
    with reporting(airflow):
        airflow.trigger("touched", "held")
        until(lambda: airflow.states("touched")["running"] == 2, "two running tasks", START_TIMEOUT)
        until(lambda: len(airflow.starts("touched")) == 3, "their starts", START_TIMEOUT)
        body = {"dag_run_id": "touched", "task_ids": ["cleared"], "dry_run": False, "only_failed": False}
        airflow.api("dags/held/clearTaskInstances", body)
        airflow.api("dags/held/dagRuns/touched/taskInstances/marked", {"new_state": "success"}, "PATCH")
        until(lambda: airflow.ended("touched"), "the end of the run", START_TIMEOUT)
        assert airflow.states("touched") == {"success": 3}
        assert airflow.starts("touched") == {"cleared.1": 1, "cleared.2": 1, "marked.1": 1, "untouched.1": 1}
        check_slots_are_free(airflow)


def test_backfill(airflow):
    with reporting(airflow):
        dates = ["--from-date", "2024-01-02", "--to-date", f"2024-01-0{1 + DAYS}"]
        airflow.airflow("backfill", "create", "--dag-id", "daily", *dates, "--max-active-runs", "2")
        ended = "SELECT run_id FROM dag_run WHERE dag_id = 'daily' AND state = 'success'"
        until(lambda: len(airflow.sql(ended)) == DAYS, "the end of each day's run", START_TIMEOUT)
        for (run,) in airflow.sql(ended):
            assert airflow.starts(run) == {"first.1": 1, "second.1": 1}
        check_slots_are_free(airflow)


def starts_of_features() -> Counter[str]:
    """Return how often each try of our executor's tasks starts."""
    names = ["numbers.1", *(f"mapped[{n}].1" for n in range(MAPPED))]
    names += ["gate.1", *(f"ranked.weight{weight}.1" for weight in range(10, 10 + RANKED))]
    names += ["sensor.1.poke0", "sensor.1.poke1", "sensor.1.poke2", "deferred.1.before", "deferred.1.after"]
    names += ["flaky.1", "retry_of_flaky.1", "flaky.2", "with_callback.1", "success_of_with_callback.1"]
    names += ["callback_of_the_run", *(["deadline_missed"] if HAS_DEADLINES else [])]
    return Counter(names)


def local_starts(airflow: Deployment) -> Counter[str]:
    return Counter({name: times for name, times in airflow.starts("all").items() if name.startswith("local")})


def local_ended(airflow: Deployment) -> bool:
    query = "SELECT count(*) FROM task_instance WHERE task_id LIKE 'local%%' AND state = 'success' AND run_id = %s"
    return airflow.sql(query, "all") == [(LOCAL,)]


def mapped_have_ended(airflow: Deployment, tasks: int) -> bool:
    airflow.check_alive()
    query = "SELECT count(*) FROM task_instance WHERE task_id = 'mapped' AND state = 'success' AND run_id = %s"
    return bool(airflow.sql(query, "all")[0][0] >= tasks)


def check_order_of_weights(airflow: Deployment) -> None:
    """The tasks of a pool with one slot must start in the order of their weights."""
    started = [start.name for start in airflow.start_lines("all") if start.name.startswith("ranked.")]
    assert started == [f"ranked.weight{weight}.1" for weight in reversed(range(10, 10 + RANKED))]


def check_tasks_per_child(airflow: Deployment) -> None:
    """No process of the worker may have run more tasks than it may."""
    elsewhere = ("local", "callback_of_the_run", "deadline", "success_of", "retry_of")
    started = [start for start in airflow.start_lines("all") if not start.name.startswith(elsewhere)]
    by_child = Counter(start.parent_pid for start in started)
    assert max(by_child.values()) <= TASKS_PER_CHILD
    assert len(by_child) >= len(started) / TASKS_PER_CHILD
