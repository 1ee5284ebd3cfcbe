"""Several brokers in one URL: another one takes over, and everybody uses the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from celeriac import Cluster, Config, State
from tests.support.cli_runner import jobs, run
from tests.support.cluster_driver import ClusterDriver
from tests.support.servers import RedisServer, free_port
from tests.support.workers import GATED, read_log, worker

pytestmark = [pytest.mark.celery, pytest.mark.usefixtures("collect_cut_sockets")]

CONFIG = Config(parallelism=8, search_interval=1.0)


@pytest.fixture
def two_redis() -> Iterator[tuple[RedisServer, RedisServer]]:
    with closing(RedisServer()) as first, closing(RedisServer()) as second:
        yield first, second


def test_the_second_redis_takes_over_until_the_first_is_back(two_redis, shared_redis, tmp_path, caplog):
    first, second = two_redis
    urls = f"{first.url};{second.url}", shared_redis.url
    command = GATED.replace("-e go ", "-e go-all ")
    with worker(tmp_path, urls, "--concurrency", "1"), Cluster(*urls, config=CONFIG) as cluster:
        driver = ClusterDriver(cluster)

        def ran(*keys: str) -> bool:
            return set(keys) <= driver.in_state(State.SUCCESS)

        for key in ("running", "waiting"):
            driver.executor.queue_command(key, command, cwd=str(tmp_path))
        driver.drive(lambda: len(driver.in_state(State.QUEUED)) == 2, "the publishing")
        driver.drive(lambda: read_log(tmp_path / "log"), "the start of a command")
        first.kill()
        driver.executor.queue_command("later", command, cwd=str(tmp_path))
        driver.drive(lambda: f"{second.url} is used from now on" in caplog.text, "the change to the second broker")
        (tmp_path / "go-all").touch()
        driver.drive(lambda: ran("running", "waiting", "later"), "the tasks of the first broker and of the second")

        first.start()
        driver.drive(lambda: f"{first.url} is used from now on" in caplog.text, "the return to the first broker")
        for key in ("after", "after it"):
            driver.executor.queue_command(key, "echo $CELERIAC_KEY >> log", cwd=str(tmp_path))
        driver.drive(lambda: ran("after", "after it"), "tasks on the first broker")
        started = (tmp_path / "log").read_text().splitlines()
        assert sorted(started) == ["after", "after it", "later", "running", "waiting"]
        assert all(event.attempt == 1 for event in driver.events)


def test_all_commands_walk_past_a_dead_broker(rabbit, shared_redis, tmp_path):
    dead = f"amqp://guest:guest@127.0.0.1:{free_port()}//"
    urls = f"{dead};{rabbit.url}", shared_redis.url
    options = ("--broker", urls[0], "--backend", urls[1])
    with worker(tmp_path, urls, "--concurrency", "2", "--name", "walker"):
        tasks = [{"key": str(n), "command": "echo $CELERIAC_KEY >> log"} for n in range(5)]
        ended = run("run", jobs(tmp_path, *tasks), *options, cwd=tmp_path)
        assert ended.status == 0, ended.err
        assert sorted(read_log(tmp_path / "log")) == ["0", "1", "2", "3", "4"]
        assert "guest:guest" not in ended.err
        assert "is used from now on" in ended.err
        status = json.loads(run("status", "--json", *options, cwd=tmp_path).out)
        assert [each["name"].partition("@")[0] for each in status["workers"]].count("walker") == 1
        unknown = run("cancel", "unknown", *options, cwd=tmp_path)
        assert (unknown.status, "is unavailable" in unknown.err) == (1, False)


def test_a_list_without_a_broker_that_answers_is_named_without_passwords(tmp_path):
    dead = ";".join(f"amqp://me:secret@127.0.0.1:{free_port()}//" for _ in range(2))
    ended = run("status", "--broker", dead, "--backend", "redis://localhost", cwd=tmp_path)
    assert ended.status == 1
    assert "amqp://me:******@127.0.0.1" in ended.err
    assert "secret" not in ended.err
