"""Airflow's own metrics from the executor, as a StatsD server receives them; and the line that it logs at its start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.airflow.statsd_server import StatsDServer
from tests.support.cli_runner import until
from tests.support.servers import free_port


class Executor:
    """The process of an executor."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._output = ""

    def output(self) -> str:
        """End the process. Return all that it has written."""
        if not self._output:
            self._output, _ = self.process.communicate(timeout=60)
        return self._output


@contextmanager
def beating(broker: str, backend: str, settings: dict[str, str], *arguments: str) -> Iterator[Executor]:
    """Yield an executor's process. At the end it is told to end, and must do so without an error."""
    servers = {"BROKER_URL": broker, "RESULT_BACKEND": backend}
    teams = ["", *(f"{name.upper()}___" for name in arguments)]
    environment = {f"AIRFLOW__{team}CELERY__{name}": url for team in teams for name, url in servers.items()}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.airflow.heartbeats", *arguments],
        env={**os.environ, **environment, **settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        executor = Executor(process)
        try:
            yield executor
            assert executor.output()
            assert process.returncode == 0, executor.output()
        finally:
            process.kill()


def await_all(server: StatsDServer, expected: set[str], executor: Executor) -> None:
    """Wait for lines that begin with these texts."""
    missing = set(expected)

    def has_all() -> bool:
        assert executor.process.poll() is None, executor.output()
        lines = server.read()
        missing.difference_update([each for each in missing if any(line.startswith(each) for line in lines)])
        return not missing

    try:
        until(has_all, "the metrics", START_TIMEOUT)
    except AssertionError:
        print(f"missing: {missing}, received: {sorted(server.received)}")
        raise


START_TIMEOUT = 180.0  # seconds: importing Airflow takes half a minute on a busy machine
KEY = "correct horse battery"
OF_AIRFLOW = {
    "airflow.executor.open_slots:6|g",
    "airflow.executor.queued_tasks:0|g",
    "airflow.executor.running_tasks:2|g",
}


def test_airflow_sends_its_own_metrics_and_those_of_celeriac(statsd, shared_redis):
    with beating(shared_redis.url, shared_redis.url, statsd.environment) as executor:
        expected = {
            *OF_AIRFLOW,
            "airflow.celeriac.tasks_in_flight.gpu:1|g",
            "airflow.celeriac.tasks_in_flight.a_b:1|g",
            "airflow.celeriac.publishes_total.gpu:1|c",
            "airflow.celeriac.task_wait_seconds.gpu:",
            "airflow.celeriac.broker_available:1",
            "airflow.celeriac.heartbeat_age_seconds:",
        }
        await_all(statsd, expected, executor)
    assert not [line for line in statsd.read() if line.startswith("airflow.celeriac.publishes_total.gpu:2")]
    assert "unexpected error" not in executor.output()
    assert (
        f"broker {shared_redis.url}; result backend {shared_redis.url}; parallelism 8; on: claims" in executor.output()
    )


def test_labels_are_tags_where_the_client_sends_tags(statsd, shared_redis):
    settings = {**statsd.environment, "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True"}
    with beating(shared_redis.url, shared_redis.url, settings) as executor:
        await_all(statsd, {"airflow.celeriac.tasks_in_flight,queue=gpu:1|g"}, executor)


def test_a_task_that_could_not_be_sent_is_counted_under_airflows_own_name(statsd, shared_redis):
    broker = f"redis://:hush@127.0.0.1:{free_port()}/0"
    with beating(
        broker, shared_redis.url, {**statsd.environment, "AIRFLOW__CELERIAC__SIGNING_KEY": f"hush-{KEY}"}
    ) as executor:
        expected = {"airflow.celery.task_timeout_error:1|c", "airflow.executor.queued_tasks:2|g"}
        await_all(statsd, {*expected, "airflow.celeriac.broker_available:0"}, executor)
    switches = "on: claims and leases, signing, broker priorities, deletion of results, Airflow's metrics; off: late"
    assert switches in executor.output()
    assert "hush" not in executor.output()


def test_without_metrics_nothing_is_sent(statsd, shared_redis):
    settings = {**statsd.environment, "AIRFLOW__METRICS__STATSD_ON": "False"}
    with beating(shared_redis.url, shared_redis.url, settings) as executor:
        pass
    assert "Airflow's metrics" in executor.output().partition("off: ")[2]
    assert statsd.read() == set()
