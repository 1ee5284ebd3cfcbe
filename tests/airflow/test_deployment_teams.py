"""Two teams in one deployment, each with its own broker, result backend and worker. Their queues have one name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.deployment import (
    ADMIN,
    OURS,
    PATIENT,
    START_TIMEOUT,
    Deployment,
    check_slots_are_free,
    deployment_of,
    reporting,
)
from tests.support.cli_runner import until
from tests.support.servers import PostgresServer, RedisServer

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(version("apache-airflow-core").startswith("3.1."), reason="Airflow 3.1 has no teams"),
]

TEAMS = "team_a", "team_b"
TASKS = 20
CLASS = "celeriac.airflow.CeleryExecutor"
BUNDLES = [
    {
        "name": team,
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(Path(__file__).parent / "team_dags" / team)},
        "team_name": team,
    }
    for team in TEAMS
]


@pytest.fixture(scope="module")
def brokers() -> Iterator[dict[str, RedisServer]]:
    with closing(RedisServer()) as first, closing(RedisServer()) as second:
        yield dict(zip(TEAMS, (first, second), strict=True))


@pytest.fixture(scope="module")
def airflow(
    tmp_path_factory: Any, shared_redis: RedisServer, brokers: dict[str, RedisServer], postgres: PostgresServer
) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("airflow")
    settings = {
        **PATIENT,
        "AIRFLOW__CORE__MULTI_TEAM": "True",
        "AIRFLOW__CORE__EXECUTOR": ";".join([CLASS, *(f"{team}={CLASS}" for team in TEAMS)]),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:{ADMIN}:{'|'.join(TEAMS)}",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(BUNDLES),
    }
    for team, broker in brokers.items():
        for option in ("BROKER_URL", "RESULT_BACKEND"):
            settings[f"AIRFLOW__{team.upper()}___CELERY__{option}"] = broker.url
    with deployment_of(
        folder,
        postgres,
        broker=shared_redis.url,  # of the global executor: no worker reads it
        backend=shared_redis.url,
        executor=OURS,
        parts=("api-server", "dag-processor", "triggerer", "scheduler", *(f"worker.{team}" for team in TEAMS)),
        dags=[f"dag_of_{team}" for team in TEAMS],
        teams=TEAMS,
        **settings,
    ) as deployment:
        yield deployment


def test_tasks_of_a_team_run_on_its_workers_only(airflow):
    with reporting(airflow):
        for team in TEAMS:
            airflow.trigger(team, f"dag_of_{team}")
        for team in TEAMS:
            until(partial(airflow.ended, team), "the end of the run", START_TIMEOUT)
            assert airflow.states(team) == {"success": TASKS}
            assert airflow.starts(team) == {f"task{n}.1": 1 for n in range(TASKS)}
            started_by = {start.parent_pid for start in airflow.start_lines(team)}
            assert started_by <= airflow.process_ids(f"worker.{team}")
        check_slots_are_free(airflow)
