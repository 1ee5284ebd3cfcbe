"""`celeriac worker` from the command line, with real brokers and real commands."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import celery
import pytest
from redis import Redis

from celeriac import CeleryExecutor, Config, Event, Reason, State
from celeriac.broker.app import app_for
from celeriac.broker.publishers import publisher_for
from celeriac.cluster.cluster import Cluster
from celeriac.cluster.revoker import ControlRevoker
from celeriac.config.settings import read_settings
from tests.support.cli_runner import Celeriac, run, started, until, without_password_warning
from tests.support.long import slow
from tests.support.proxy import Proxy
from tests.support.readers import close_readers as close_readers
from tests.support.readers import one_by_one_reader
from tests.support.servers import RedisServer

pytestmark = pytest.mark.celery

TIMEOUT = 2.0  # seconds for one operation


@pytest.fixture
def redis(shared_redis) -> RedisServer:
    with Redis(port=shared_redis.port) as client:
        client.flushall()
    return shared_redis  # type: ignore[no-any-return]


class Site:
    """An executor on the other side of the broker."""

    def __init__(self, broker: str, backend: str | None = None) -> None:
        self.app = app = app_for(read_settings({"broker": broker, "backend": backend}, environment={}).connection)
        self.publisher = publisher_for(app)
        self.executor = CeleryExecutor(
            Config(parallelism=8, operation_timeout=TIMEOUT, reconcile_interval=0.2),
            publisher=self.publisher,
            results=one_by_one_reader(app, timeout=TIMEOUT),
            revoker=ControlRevoker(app, timeout=TIMEOUT),
        )
        self.events: list[Event] = []

    def drive(self, is_done: Callable[[], object]) -> None:
        def heartbeat() -> object:
            self.executor.heartbeat()
            self.events.extend(self.executor.get_event_buffer())
            self.executor.wait(0.05)
            return is_done()

        until(heartbeat, "the condition that the executor waits for", 60)

    @property
    def ends(self) -> dict[Any, Event]:
        return {event.key: event for event in self.events if event.state.is_final}

    def run_until_ended(self, number: int) -> dict[Any, Event]:
        self.drive(lambda: len(self.ends) == number)
        return self.ends


@contextmanager
def worker(folder: Path, *options: str) -> Iterator[Celeriac]:
    with started("worker", "--log-format", "json", *options, cwd=folder) as celeriac:
        celeriac.wait_for_stderr('"ready"')
        yield celeriac


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def touching(path: Path, then: str) -> str:
    return f"touch {path}; {then}"


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_commands_run_and_the_log_has_each_event_but_no_command_and_no_secret(redis, tmp_path, pool):
    site = Site(redis.url)
    with worker(tmp_path, "--broker", redis.url, "--pool", pool, "-c", "2", "--output", "out") as celeriac:
        site.executor.queue_command("fine", "echo hello hush", env={"TOKEN": "hunter2"})
        site.executor.queue_command("bad key\n", "exit 3")
        ends = site.run_until_ended(2)
        celeriac.signal(signal.SIGTERM)
        ended = celeriac.wait()
        assert celeriac.alive() == []
    assert ended.status == 0
    assert ends["fine"].state is State.SUCCESS
    assert (ends["bad key\n"].reason, ends["bad key\n"].detail) == (Reason.EXIT_CODE, "exit code 3")
    assert (tmp_path / "out" / "fine.out").read_text() == "hello hush\n"
    events = [(line["event"], line["key"], line.get("reason")) for line in lines(ended.err) if "key" in line]
    assert sorted(events, key=str) == sorted(
        [
            *((event, key, None) for event in ("received", "started") for key in ("fine", "bad key\n")),
            ("ended", "fine", "success"),
            ("ended", "bad key\n", "exit_code"),
        ],
        key=str,
    )
    assert all(line["duration"] >= 0 for line in lines(ended.err) if line["event"] == "ended")
    assert "hush" not in ended.err
    assert "hunter2" not in ended.err


def test_rabbitmq_and_postgresql(rabbit, postgres, tmp_path):
    site = Site(rabbit.url, postgres.url)
    options = ["--broker", rabbit.url, "--backend", postgres.url, "-c", "2", "--queues", "default,gpu"]
    with worker(tmp_path, *options) as celeriac:
        for n in range(6):
            site.executor.queue_command(n, f"echo {n} >> log", queue="gpu" if n % 2 else "default", cwd=str(tmp_path))
        site.executor.queue_command("long", touching(tmp_path / "up", "sleep 60"))
        site.drive((tmp_path / "up").exists)
        site.executor.revoke_task("long")
        ends = site.run_until_ended(7)
        celeriac.signal(signal.SIGTERM)
        assert celeriac.wait().status == 0
    site.publisher.close()
    assert sorted((tmp_path / "log").read_text().split()) == list("012345")
    assert (ends["long"].state, ends["long"].detail) == (State.REVOKED, "revoked while it ran")


def test_threads_share_their_connections_to_a_database(redis, postgres, tmp_path):
    """Without our settings, Celery opens a connection for each result."""

    def opened() -> int:
        ((count,),) = postgres.sql("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")
        return int(count)

    options = ("--broker", redis.url, "--backend", postgres.url, "-c", "4")
    with worker(tmp_path, *options), Cluster(redis.url, postgres.url) as cluster:
        executor = cluster.executor()
        ended: list[Event] = []

        def run_all(count: int) -> None:
            for n in range(count):
                executor.queue_command(n, "true")
            ended.clear()
            until(lambda: heartbeat() == count, f"{count} ends")

        def heartbeat() -> int:
            executor.heartbeat()
            ended.extend(event for event in executor.get_event_buffer() if event.state is State.SUCCESS)
            executor.wait(0.05)
            return len(ended)

        run_all(8)
        before = opened()
        run_all(60)
    assert opened() - before < 30


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_revoking_ends_a_running_command_and_reports_the_signal(redis, tmp_path, pool):
    site = Site(redis.url)
    with worker(tmp_path, "--broker", redis.url, "--pool", pool, "-c", "2"):
        site.executor.queue_command("long", touching(tmp_path / "long", "sleep 60"))
        site.executor.queue_command(
            "stays", touching(tmp_path / "stays", "while [ ! -e go ]; do sleep 0.02; done"), cwd=str(tmp_path)
        )
        site.drive(lambda: (tmp_path / "long").exists() and (tmp_path / "stays").exists())
        site.executor.revoke_task("long")
        site.drive(lambda: site.ends)
        (tmp_path / "go").touch()
        ends = site.run_until_ended(2)
    assert (ends["long"].state, ends["long"].reason) == (State.REVOKED, Reason.REVOKED)
    assert ends["long"].execution is not None
    assert ends["long"].execution.signal == "SIGTERM"
    assert ends["stays"].state is State.SUCCESS


@pytest.mark.parametrize("way", ["TERM", "remote shutdown"])
@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_shutdown_lets_commands_finish_and_accepts_no_more_messages(redis, tmp_path, pool, way):
    site = Site(redis.url)
    with worker(tmp_path, "--broker", redis.url, "--pool", pool, "-c", "1") as celeriac:
        site.executor.queue_command(
            "first", touching(tmp_path / "up", "while [ ! -e go ]; do sleep 0.02; done"), cwd=str(tmp_path)
        )
        site.drive((tmp_path / "up").exists)
        if way == "TERM":
            celeriac.signal(signal.SIGTERM)
        else:
            site.app.control.shutdown()
        celeriac.wait_for_stderr("no more messages are accepted")
        site.executor.queue_command("second", "true")
        site.executor.heartbeat()
        (tmp_path / "go").touch()
        assert celeriac.wait().status == 0
    assert site.run_until_ended(1)["first"].state is State.SUCCESS
    with Redis(port=redis.port) as client:
        assert (client.llen("default\x06\x169"), client.hlen("unacked")) == (1, 0)


@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("way", ["deadline", "second TERM"])
def test_commands_that_do_not_finish_in_time_are_ended_and_handed_back(redis, tmp_path, pool, way):
    site = Site(redis.url)
    options = ["--broker", redis.url, "--pool", pool, "-c", "2"]
    command = "echo x >> tries; [ $(wc -l < tries) = 2 ] || sleep 60"
    with worker(tmp_path, *options, "--grace", "0.2" if way == "deadline" else "600") as celeriac:
        site.executor.queue_command("long", command, cwd=str(tmp_path))
        site.drive((tmp_path / "tries").exists)
        celeriac.signal(signal.SIGTERM)
        if way == "second TERM":
            celeriac.wait_for_stderr("no more messages are accepted")
            celeriac.signal(signal.SIGTERM)
        ended = celeriac.wait()
        assert ended.status == 0
        assert celeriac.alive() == []
    with Redis(port=redis.port) as client:
        assert (client.llen("default\x06\x169"), client.hlen("unacked")) == (1, 0)
    with worker(tmp_path, *options):
        assert site.run_until_ended(1)["long"].state is State.SUCCESS


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_no_command_outlives_a_killed_worker(redis, tmp_path, pool):
    site = Site(redis.url)
    with worker(tmp_path, "--broker", redis.url, "--pool", pool, "-c", "2") as celeriac:
        for n in range(2):
            site.executor.queue_command(n, touching(tmp_path / str(n), "trap '' TERM; sleep 60; sleep 60"))
        site.drive(lambda: all((tmp_path / str(n)).exists() for n in range(2)))
        celeriac.signal(signal.SIGKILL)
        celeriac.wait_until_nothing_is_alive()


def run_one(site: Site, key: str) -> None:
    site.executor.queue_command(key, "true")
    site.drive(lambda: key in site.ends)
    assert site.ends[key].state is State.SUCCESS


@pytest.mark.slow
def test_a_worker_receives_messages_again_after_its_redis_was_frozen(tmp_path):
    redis = RedisServer()
    site = Site(redis.url)
    with worker(tmp_path, "--broker", redis.url, "-c", "1") as celeriac:
        run_one(site, "before")
        redis.freeze()
        celeriac.wait_for_stderr("reconnecting")
        redis.thaw()
        run_one(site, "after")
    redis.close()


@pytest.mark.parametrize("kind", ["redis", slow("rabbit")])
def test_a_worker_receives_messages_again_after_a_black_hole(request, redis, tmp_path, kind):
    server = redis if kind == "redis" else request.getfixturevalue("rabbit")
    with Proxy(server.port) as proxy:
        site = Site(server.url, redis.url)
        url = server.url.replace(str(server.port), str(proxy.port))
        with worker(tmp_path, "--broker", url, "--backend", redis.url, "-c", "1") as celeriac:
            run_one(site, f"before {kind}")
            proxy.swallow()
            celeriac.wait_for_stderr(
                "onnect"
            )  # "reconnecting" is the watchdog's, "Connection to broker lost" is Celery's own
            proxy.heal()
            run_one(site, f"after {kind}")
        site.publisher.close()


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_uses_all_slots_again_after_it_was_cut_off_while_full(redis, tmp_path, pool):
    """After a reconnection Celery prefetches less, by the number of running tasks. Each task that ends during the
    outage, or later, must undo that."""
    if pool == "prefork" and celery.__version__.startswith("5.5."):
        pytest.skip("Celery 5.5 gets no results from its children after its connection was lost")

    def queue(name: str, count: int) -> None:
        for n in range(count):
            command = f"echo >> {tmp_path}/{name}; until [ -e {tmp_path}/{name}{n} ]; do sleep 0.05; done"
            site.executor.queue_command((name, n), command)

    def let_end(name: str, *numbers: int) -> None:
        for n in numbers:
            (tmp_path / f"{name}{n}").touch()

    def is_full(name: str) -> bool:
        file = tmp_path / name
        return file.exists() and len(file.read_text()) == 3

    site = Site(redis.url)
    with worker(tmp_path, "--broker", redis.url, "--pool", pool, "-c", "3") as celeriac:
        queue("first", 3)
        site.drive(lambda: is_full("first"))
        redis.kill()
        let_end("first", 0)
        celeriac.wait_for_stderr("onnect")
        redis.start()
        let_end("first", 1, 2)
        site.drive(lambda: len(site.ends) == 3)
        queue("second", 4)
        site.drive(lambda: is_full("second"))
        let_end("second", 0, 1, 2, 3)
        site.run_until_ended(7)
    site.publisher.close()


def test_results_wait_for_an_unavailable_backend(redis, tmp_path):
    backend = RedisServer()
    site = Site(redis.url, backend.url)
    with worker(tmp_path, "--broker", redis.url, "--backend", backend.url, "-c", "1"):
        command = "touch up; while [ ! -e go ]; do sleep 0.02; done; touch over"
        site.executor.queue_command("k", command, cwd=str(tmp_path))
        site.drive((tmp_path / "up").exists)
        backend.kill()
        (tmp_path / "go").touch()
        until((tmp_path / "over").exists, "the end of the command")
        backend.start()
        assert site.run_until_ended(1)["k"].state is State.SUCCESS
    backend.close()


def test_a_queue_with_other_arguments_is_named_in_one_line(rabbit, redis, tmp_path):
    connection = read_settings({"broker": rabbit.url, "backend": redis.url}, environment={}).connection
    plain = app_for(connection, task_queue_max_priority=None)
    with plain.connection_for_write() as amqp:
        plain.amqp.queues["plain"](amqp.channel()).declare()
    ended = run("worker", "--broker", rabbit.url, "--backend", redis.url, "--queues", "plain", cwd=tmp_path)
    assert ended.status == 2
    assert "celeriac: queue 'plain' exists with other arguments" in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "broker: none is named; give --broker-file or --broker, or write it in celeriac.toml\n"),
        ("--broker redis://h --autoscale 8,2", "autoscale: a pool of threads cannot grow or shrink; give --pool"),
        ("--broker amqp://me:hunter2@h//", "backend: none is named, and a broker of kind 'amqp' keeps no results; "),
        (
            "--broker memory:// --backend cache+memory://",
            "broker: a worker cannot use a broker of kind 'memory'; give Redis, ",
        ),
        ("--broker redsi://h --backend redis://h", "broker: Celery does not support 'redsi'; "),
        ("--broker redis://h --backend mystery://h", "backend: Celery does not support 'mystery'; "),
        ("--broker redis://h --output /proc/x", "output: /proc/x: No such file or directory; name a folder to write"),
    ],
)
def test_settings_that_cannot_work_are_reported_in_one_line(tmp_path, options, message):
    ended = run("worker", *options.split(), cwd=tmp_path)
    assert ended.status == 2
    err = without_password_warning(ended.err)
    assert err.startswith(f"celeriac: {message}")
    assert err.count("\n") == 1
    assert "hunter2" not in ended.err


def test_a_pool_of_processes_grows_with_the_load(redis, tmp_path):
    site = Site(redis.url)
    with worker(tmp_path, "--broker", redis.url, "--pool", "prefork", "--autoscale", "3,1"):
        for n in range(3):
            site.executor.queue_command(n, touching(tmp_path / f"up-{n}", "while [ ! -e go ]; do sleep 0.05; done"))
        site.drive(lambda: all((tmp_path / f"up-{n}").exists() for n in range(3)))  # all three run at once
        (tmp_path / "go").touch()
        ends = site.run_until_ended(3)
    assert {event.state for event in ends.values()} == {State.SUCCESS}
