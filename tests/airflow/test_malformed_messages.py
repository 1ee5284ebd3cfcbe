"""Malformed messages before `airflow celeriac worker`: they are refused, and a workload beside them runs."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest
from redis import Redis

from celeriac.airflow.task import TASK_NAME
from celeriac.task.task import Task
from tests.airflow import workloads as workload_factory
from tests.airflow.test_worker import Sender, environment, redis, sender, server, worker  # noqa: F401 - fixtures
from tests.support.cli_runner import until
from tests.support.malformed import MALFORMED, NO_CALLBACKS, message_of, on_redis_only

SKIPPED = ("argument", "no argument")  # they change the table of a command, and a workload is a text


def workload_message(name: str):
    message = message_of(Task(key=name, command="true"))
    text = workload_factory.task("t").model_dump_json()
    return replace(
        message,
        headers={**message.headers, "task": TASK_NAME},
        body=json.dumps([[text], {}, NO_CALLBACKS]).encode(),
    )


@pytest.mark.one_version
@pytest.mark.parametrize("key", [None, "a signing key of some length"])
def test_malformed_messages_are_refused_and_a_workload_beside_them_runs(environment, tmp_path, redis, sender, key):  # noqa: F811
    environment["AIRFLOW__CELERIAC__MAX_MESSAGE_SIZE"] = "200000"
    if key is not None:
        environment["AIRFLOW__CELERIAC__SIGNING_KEY"] = key
    bad = [
        change(workload_message(name)).on_redis() for name, change in MALFORMED.items() if not name.startswith(SKIPPED)
    ]
    bad += [text for _, text in on_redis_only(workload_message("raw"))]
    with (
        worker("-q", "default", folder=tmp_path, environment=environment) as running,
        Redis(port=redis.port) as client,
    ):
        for item in bad:
            client.lpush("default", item)
        good = sender.send(workload_factory.task("good"))
        assert sender.final_status(good) == "FAILURE"  # there is no API server
        until(lambda: running.log.count("] refused: ") >= len(bad), "all refusals", 60)
        until(lambda: not client.hlen("unacked"), "the acknowledgements")
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        assert running.log.count("] refused: ") == len(bad) + (key is not None)
        assert client.llen("celeriac-refused") == 100
    assert ("started: ExecuteTask dag_id=dag task_id=good run_id=run" in running.log) == (key is None)
