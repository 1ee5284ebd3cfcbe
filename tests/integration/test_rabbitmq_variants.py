"""RabbitMQ with other settings: a short `consumer_timeout`, quorum queues, users with few rights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celeriac import Cluster, Config, State
from tests.support.cli_runner import run
from tests.support.cluster_driver import ClusterDriver
from tests.support.servers import RabbitServer
from tests.support.worker_host import WorkerHost
from tests.support.workers import GATED, read_log

pytestmark = pytest.mark.celery

SET_TIMEOUTS = (
    "application:set_env(rabbit, channel_tick_interval, {tick}),"
    " application:set_env(rabbit, consumer_timeout, {timeout})."
)


@pytest.fixture
def impatient_rabbit(rabbit: RabbitServer) -> Iterator[RabbitServer]:
    """RabbitMQ that waits 1.5 s for an acknowledgement. By default it waits 30 minutes."""
    rabbit.control("eval", SET_TIMEOUTS.format(tick=300, timeout=1_500))
    yield rabbit
    rabbit.control("eval", SET_TIMEOUTS.format(tick=60_000, timeout=1_800_000))


def test_commands_longer_than_the_consumer_timeout_run_once(impatient_rabbit, shared_redis, tmp_path):
    broker = impatient_rabbit
    config = Config(parallelism=4)
    with (
        WorkerHost("one", broker, shared_redis, tmp_path, "--concurrency", "1", is_behind_proxies=False) as one,
        WorkerHost("two", broker, shared_redis, tmp_path, "--concurrency", "1", is_behind_proxies=False) as two,
        Cluster(broker.url, shared_redis.url, config=config) as cluster,
    ):
        driver = ClusterDriver(cluster)
        driver.executor.queue_command("long", GATED, cwd=str(tmp_path))
        driver.drive(lambda: read_log(tmp_path / "log"), "the start of the command")
        timed_out = "because a command took longer than its consumer_timeout of 1500 ms"
        driver.drive(lambda: timed_out in one.log.read_text() + two.log.read_text(), "the timeout")
        for key in range(5):
            driver.executor.queue_command(key, "echo $CELERIAC_KEY >> log", cwd=str(tmp_path))
        driver.drive(lambda: len(driver.in_state(State.SUCCESS)) == 5, "the short commands beside it")
        (tmp_path / "go").touch()
        assert driver.drive_to_ends(6) == {State.SUCCESS: 6}
        assert sorted(read_log(tmp_path / "log")) == ["0", "1", "2", "3", "4", "long"]
        for host in (one, two):
            assert host.worker.process.poll() is None
            assert "Traceback" not in host.log.read_text()
            assert "other arguments" not in host.log.read_text()


def test_a_worker_without_rights_ends_with_one_line(rabbit, shared_redis, tmp_path):
    rabbit.control("add_user", "reader", "secret")
    rabbit.control("set_permissions", "--vhost", rabbit.vhost, "reader", "", "", ".*")
    url = rabbit.url.replace("guest:guest", "reader:secret")
    ended = run("worker", "--broker", url, "--backend", shared_redis.url, cwd=tmp_path)
    assert ended.status == 2
    assert "celeriac: queue 'default' is not allowed for this user" in ended.err
    assert "give the user the rights to configure, write and read it" in ended.err
    assert "Traceback" not in ended.err
