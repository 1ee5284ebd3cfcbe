"""From command line options and Airflow's configuration to the plan of a worker."""

from __future__ import annotations

from argparse import Namespace
from math import inf
from typing import Any

import pytest
from airflow.executors.base_executor import ExecutorConf

from celeriac.airflow.options import InvalidAirflowConfig
from celeriac.airflow.worker_plan import WorkerPlan, parse_autoscale, plan_worker

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
