"""RabbitMQ with other settings: a short `consumer_timeout`, quorum queues, users with few rights."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from copy import copy
from types import SimpleNamespace
from uuid import uuid4

import pytest
from amqp.exceptions import ConsumerCancelled
from celery.worker.loops import _quick_drain
from kombu import Connection, Consumer, Queue

from celeriac import Cluster, Config, Reason, State
from celeriac.broker.queues import queue_counts
from celeriac.worker.guarded_transport import guard_connection
from tests.support.cli_runner import jobs, run, until
from tests.support.cluster_driver import ClusterDriver
from tests.support.servers import RabbitServer
from tests.support.worker_host import WorkerHost
from tests.support.workers import GATED, read_log, wait_for_reply

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
        consumers = broker.control("list_consumers", "--vhost", broker.vhost, "--quiet", "queue_name", "arguments")
        assert 'default\t[{"x-consumer-timeout",2147483647}]' in consumers
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
    user = uuid4().hex
    rabbit.control("add_user", user, "secret")
    rabbit.control("set_permissions", "--vhost", rabbit.vhost, user, "", "", ".*")
    url = rabbit.url.replace("guest:guest", f"{user}:secret")
    ended = run("worker", "--broker", url, "--backend", shared_redis.url, cwd=tmp_path)
    assert ended.status == 2
    assert "celeriac: queue 'default' is not allowed for this user" in ended.err
    assert "give the user the rights to configure, write and read it" in ended.err
    assert "Traceback" not in ended.err


@pytest.fixture(scope="module")
def quorum_rabbit(rabbit: RabbitServer) -> RabbitServer:
    """RabbitMQ with a virtual host whose queues are quorum queues by default."""
    server = copy(rabbit)
    server.vhost = uuid4().hex
    server.control("add_vhost", server.vhost, "--default-queue-type", "quorum")
    server.control("set_permissions", "--vhost", server.vhost, "guest", ".*", ".*", ".*")
    server.url = f"amqp://guest:guest@127.0.0.1:{server.port}/{server.vhost}"
    return server


def test_tasks_run_on_quorum_queues(quorum_rabbit, shared_redis, tmp_path):
    broker = quorum_rabbit
    options = ("--queue-type", "quorum", "--queues", "default,other", "--concurrency", "2")
    tasks = [
        {"key": str(n), "command": "echo $CELERIAC_KEY >> log", "queue": "other" if n % 2 else "default"}
        for n in range(20)
    ]
    with WorkerHost("one", broker, shared_redis, tmp_path, *options, is_behind_proxies=False) as host:
        urls = ("--broker", broker.url, "--backend", shared_redis.url, "--queue-type", "quorum")
        ended = run("run", jobs(tmp_path, *tasks), *urls, cwd=tmp_path)
        assert ended.status == 0, ended.err
        assert sorted(map(int, read_log(tmp_path / "log"))) == list(range(20))
        assert "Traceback" not in host.log.read_text()
        status = json.loads(run("status", "--json", *urls, cwd=tmp_path).out)
        assert ["default", "other"] in [worker["queues"] for worker in status["workers"]]
    kinds = broker.control("list_queues", "--vhost", broker.vhost, "--quiet", "name", "type").splitlines()[1:]
    assert sorted(kinds) == ["default\tquorum", "other\tquorum"]


@pytest.mark.parametrize("queue", ["existing", "new"])
def test_a_quorum_queue_is_named_with_the_setting_that_it_needs(quorum_rabbit, shared_redis, tmp_path, queue):
    if queue == "existing":  # RabbitMQ 3.10 lets it be declared again with priorities, and refuses its consumer
        with Connection(quorum_rabbit.url) as connection:
            connection.channel().queue_declare(queue, durable=True, auto_delete=False)
    options = ("--broker", quorum_rabbit.url, "--backend", shared_redis.url, "--queues", queue)
    ended = run("worker", *options, cwd=tmp_path)
    assert ended.status == 2
    assert ended.err.startswith(f"celeriac: queue '{queue}' is a quorum queue (")
    assert "; set queue_type = quorum (in Celery: task_default_queue_type)" in ended.err


def test_an_executor_names_a_quorum_queue_and_logs_it_once(quorum_rabbit, shared_redis, caplog):
    with Cluster(quorum_rabbit.url, shared_redis.url, config=Config(parallelism=1)) as cluster:
        driver = ClusterDriver(cluster)
        driver.executor.queue_command("k", "true", queue="unknown")
        driver.drive(lambda: [event.reason for event in driver.events].count(Reason.PUBLISH_ERROR) >= 2, "two refusals")
        assert "queue 'unknown' is a quorum queue" in str(driver.events[-1].detail)
    (line,) = [message for message in caplog.messages if "refuses requests" in message]
    assert line.endswith("set queue_type = quorum (in Celery: task_default_queue_type) in every executor and worker")


def test_quorum_queues_need_rabbitmq(tmp_path):
    ended = run("worker", "--broker", "redis://h", "--queue-type", "quorum", cwd=tmp_path)
    assert ended.status == 2
    assert ended.err == (
        "celeriac: queue_type: a broker of kind 'redis' has no quorum queues;"
        " leave it out, or give RabbitMQ as the broker\n"
    )


def waiting_in(url: str, queue: str) -> tuple[int, int]:
    """Return how many messages wait in a queue, and how many consumers it has."""
    with Connection(url) as connection:
        return queue_counts(connection, queue)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_worker_that_lost_its_connection_takes_no_message_that_it_cannot_start(rabbit, shared_redis, tmp_path, slots):
    queue = f"full-{slots}"
    options = ("--queues", queue, "--concurrency", str(slots))
    with (
        WorkerHost("one", rabbit, shared_redis, tmp_path, *options) as host,
        Cluster(rabbit.url, shared_redis.url, config=Config(parallelism=8)) as cluster,
    ):
        driver = ClusterDriver(cluster)
        for key in range(slots):
            driver.executor.queue_command(key, GATED, cwd=str(tmp_path), queue=queue)
        driver.drive(lambda: len(read_log(tmp_path / "log")) == slots, "the start of the commands")
        assert waiting_in(rabbit.url, queue) == (0, 1)
        host.network.cut()
        until(lambda: waiting_in(rabbit.url, queue)[0] == slots, "the return of the messages")
        wait_for_reply((host.network.url(rabbit.url), shared_redis.url))
        assert waiting_in(rabbit.url, queue) == (slots, 0)
        (tmp_path / "go-0").touch()
        driver.drive(lambda: waiting_in(rabbit.url, queue) == (0, 1), "the copies, which are dropped")
        driver.executor.queue_command("next", "true", queue=queue)
        driver.drive(lambda: "next" in driver.in_state(State.SUCCESS), "the next command beside those that still run")
        (tmp_path / "go").touch()
        assert driver.drive_to_ends(slots + 1) == {State.SUCCESS: slots + 1}
        for key in range(2 * slots):
            driver.executor.queue_command(f"last-{key}", "true", queue=queue)
        assert driver.drive_to_ends(3 * slots + 1) == {State.SUCCESS: 3 * slots + 1}
        assert len(read_log(tmp_path / "log")) == slots
        assert "ack" not in host.log.read_text()


def test_a_task_whose_message_was_dropped_is_handed_back_at_once(rabbit, shared_redis, tmp_path):
    queue = "handed-back"
    options = ("--queues", queue, "--concurrency", "1", "--grace", "0")
    with (
        WorkerHost("one", rabbit, shared_redis, tmp_path, *options) as one,
        Cluster(rabbit.url, shared_redis.url, config=Config(parallelism=8)) as cluster,
    ):
        driver = ClusterDriver(cluster)
        driver.executor.queue_command("long", GATED, cwd=str(tmp_path), queue=queue)
        driver.drive(lambda: read_log(tmp_path / "log") == ["long"], "the start of the command")
        one.network.cut()
        until(lambda: waiting_in(rabbit.url, queue)[0] == 1, "the return of the message")
        with WorkerHost("two", rabbit, shared_redis, tmp_path, *options) as two:
            until(lambda: "dropped" in two.log.read_text(), "the end of the copy")
            for key in ("busy", "next"):
                driver.executor.queue_command(key, GATED, cwd=str(tmp_path), queue=queue)
            driver.drive(lambda: read_log(tmp_path / "log") == ["long", "busy"], "the start of another command")
            driver.drive(lambda: waiting_in(rabbit.url, queue)[0] == 1, "a queue that is not empty")
            one.worker.signal(signal.SIGTERM)
            assert one.worker.process.wait(30) == 0
            assert waiting_in(rabbit.url, queue)[0] == 2
            (tmp_path / "go").touch()
            assert driver.drive_to_ends(3) == {State.SUCCESS: 3}
        assert read_log(tmp_path / "log") == ["long", "busy", "next", "long"]
        assert {event.attempt for event in driver.events} == {1}


def test_the_first_read_of_a_connection_hides_no_lost_consumer(rabbit):
    with Connection(rabbit.url) as connection:
        guard_connection(connection, SimpleNamespace(max_item_size=1))
        queue = Queue(uuid4().hex, channel=connection)
        consumer = Consumer(connection, queue)
        consumer.consume()
        rabbit.control("delete_queue", "--vhost", rabbit.vhost, queue.name)
        with pytest.raises(ConsumerCancelled):
            until(lambda: _quick_drain(connection), "the loss of the consumer")
