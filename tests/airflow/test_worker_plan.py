"""From command line options and Airflow's configuration to the plan of a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from airflow.executors.base_executor import ExecutorConf

from celeriac.airflow.options import InvalidAirflowConfig
from celeriac.airflow.worker_plan import WorkerPlan, parse_autoscale, parse_umask, plan_worker

NO_OPTIONS = dict.fromkeys(("team", "celery_hostname", "queues", "concurrency", "autoscale"))
NO_FLAGS = dict.fromkeys(("without_mingle", "without_gossip", "verbose", "skip_serve_logs"), False)


def plan(**options: Any) -> WorkerPlan:
    return plan_worker(Namespace(**{**NO_OPTIONS, **NO_FLAGS, **options}), ExecutorConf())


def test_plan_has_the_defaults():
    defaults = plan()
    assert (defaults.queues, defaults.concurrency, defaults.autoscale) == (["default"], 16, None)
    assert (defaults.log_level, defaults.grace, defaults.cleanup_time) == ("INFO", inf, 60.0)
    assert (defaults.operation_timeout, defaults.keys, defaults.serves_logs) == (1.0, None, True)


def test_command_line_overrides_the_configuration(monkeypatch):
    monkeypatch.setenv("AIRFLOW__CELERY__WORKER_CONCURRENCY", "3")
    monkeypatch.setenv("AIRFLOW__CELERY__WORKER_AUTOSCALE", "8,2")
    assert (plan().concurrency, plan().autoscale) == (3, (8, 2))
    given = plan(concurrency=5, autoscale="9", queues="a, b,", celery_hostname="first@there", verbose=True)
    assert (given.concurrency, given.autoscale, given.queues) == (5, (9, 0), ["a", "b"])
    assert (given.hostname, given.log_level) == ("first@there", "DEBUG")


@pytest.mark.parametrize(("celery", "logging", "shows"), [("None", "True", True), ("False", "True", False)])
def test_logging_option_applies_if_the_celery_option_is_unset(monkeypatch, celery, logging, shows):
    monkeypatch.setenv("AIRFLOW__CELERY__TASK_LOGS_TO_STDOUT", celery)
    monkeypatch.setenv("AIRFLOW__LOGGING__TASK_LOGS_TO_STDOUT", logging)
    assert plan().shows_task_logs is shows


@pytest.mark.parametrize("text", ["some", "0", "-1,4", "4,x"])
def test_autoscale_must_be_two_numbers(text):
    with pytest.raises(InvalidAirflowConfig, match=r"^\[celery\] worker_autoscale: "):
        parse_autoscale(text)


@pytest.mark.parametrize(("text", "expected"), [("16,4", (16, 4)), ("4,16", (16, 4)), ("7", (7, 0)), ("", None)])
def test_autoscale_takes_maximum_and_minimum_in_any_order(text, expected):
    assert parse_autoscale(text) == expected


@pytest.mark.parametrize("text", ["some", "8", "1777", "-1"])
def test_umask_must_be_octal(text):
    with pytest.raises(InvalidAirflowConfig, match=r"^\[celery\] worker_umask: "):
        parse_umask(text)
    assert parse_umask("0o027") == "0o027"


def test_api_server_policy_keeps_options_that_the_user_has_set(monkeypatch):
    default = plan().api_server
    assert (default.patience, default.max_silence, default.max_delay, default.max_attempts) == (600.0, 240.0, 5.0, None)
    assert (default.limits_heartbeats, default.heartbeat_attempts) == (True, 1)
    for name, value in {
        "CELERIAC__API_SERVER_PATIENCE": "60",
        "WORKERS__EXECUTION_API_RETRIES": "5",
        "WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "90",
        "WORKERS__MAX_FAILED_HEARTBEATS": "3",
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "100",
    }.items():
        monkeypatch.setenv(f"AIRFLOW__{name}", value)
    given = plan().api_server
    assert (given.patience, given.max_silence, given.max_delay, given.max_attempts) == (60.0, 80.0, 90.0, 5)
    assert given.limits_heartbeats is False


def test_default_in_a_file_does_not_count_as_set(tmp_path, monkeypatch):
    """Airflow writes a file with all defaults."""
    (tmp_path / "airflow.cfg").write_text("[workers]\nexecution_api_retries = 5\nexecution_api_retry_wait_max = 90.0\n")
    assert policy_of_file(tmp_path) == "5.0 None"
    (tmp_path / "airflow.cfg").write_text("[workers]\nexecution_api_retries = 6\nexecution_api_retry_wait_max = 30.0\n")
    assert policy_of_file(tmp_path) == "30.0 6"


def policy_of_file(home: Path) -> str:
    """Return the longest delay and the number of attempts, as a new process with this folder has them."""
    code = (
        "from tests.airflow.test_worker_plan import plan; policy = plan().api_server;"
        " print(policy.max_delay, policy.max_attempts)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "AIRFLOW_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("value", ["0", "-1", "inf", "long"])
def test_patience_must_be_a_number_of_seconds(monkeypatch, value):
    monkeypatch.setenv("AIRFLOW__CELERIAC__API_SERVER_PATIENCE", value)
    with pytest.raises(InvalidAirflowConfig, match=r"^\[celeriac\] api_server_patience: "):
        plan()
