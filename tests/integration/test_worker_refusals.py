"""`celeriac worker` and servers that refuse: at its start, while a command runs, and when its result is stored."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from celeriac.config.lease import LEASE_DURATION
from tests.support.cli_runner import Celeriac, jobs, run, started, until, without_password_warning
from tests.support.long import slow
from tests.support.servers import PostgresServer, RabbitServer, RedisServer, Server
from tests.support.worker_host import WorkerHost

pytestmark = [pytest.mark.celery, pytest.mark.usefixtures("collect_cut_sockets")]

GATED = "echo $CELERIAC_KEY >> starts; while [ ! -e go ]; do sleep 0.02; done"


@pytest.fixture
def redis(shared_redis) -> RedisServer:
    shared_redis.command("FLUSHALL")
    return shared_redis  # type: ignore[no-any-return]


class Site:
    """A worker of concurrency 2, and its log."""

    def __init__(self, folder: Path, broker: Server, backend: Server, *options: str) -> None:
        self.folder, self.broker, self.backend = folder, broker, backend
        self.host = WorkerHost("w", broker, backend, folder, "--concurrency", "2", *options, is_behind_proxies=False)

    @contextmanager
    def run(self, *keys: str) -> Iterator[Celeriac]:
        """Run a gated command for each key. All of them run when the context begins, and have succeeded when it
        ends."""
        (self.folder / "go").unlink(missing_ok=True)
        (self.folder / "starts").unlink(missing_ok=True)
        path = jobs(self.folder, *({"key": key, "command": GATED} for key in keys))
        urls = ("--broker", self.broker.url, "--backend", self.backend.url)
        with started("run", path, *urls, "--quiet", cwd=self.folder) as celeriac:
            until(lambda: sorted(self.starts) == sorted(keys), f"the start of {keys}", 60)
            yield celeriac
            self.open_gate()
            ended = celeriac.wait()
        assert ended.status == 0, ended.err
        assert sorted(self.starts) == sorted(keys)

    def open_gate(self) -> None:
        (self.folder / "go").touch()

    @property
    def starts(self) -> list[str]:
        path = self.folder / "starts"
        return path.read_text().split() if path.exists() else []

    @property
    def log(self) -> str:
        return self.host.log.read_text()

    def wait_for_log(self, text: str, number: int = 1) -> None:
        until(lambda: self.log.count(text) >= number, f"{text!r} in the log, {number} times")

    def close(self) -> None:
        self.host.close()
        assert "Traceback" not in self.log


@contextmanager
def site_at(folder: Path, broker: Server, backend: Server, *options: str) -> Iterator[Site]:
    site = Site(folder, broker, backend, *options)
    try:
        yield site
    finally:
        site.close()


Refusal = Callable[[RedisServer], AbstractContextManager[None]]

WRITES_REFUSED = [RedisServer.full, RedisServer.no_replicas, RedisServer.read_only]


@pytest.mark.parametrize("refusal", [*WRITES_REFUSED, slow(RedisServer.misconf), slow(RedisServer.busy)])
def test_a_result_is_stored_once_redis_serves_again_and_every_slot_is_free(redis, tmp_path, refusal: Refusal):
    with site_at(tmp_path, redis, redis) as site:
        for number in (1, 2):
            with site.run(f"one{number}", f"two{number}"), refusal(redis):
                site.open_gate()
                site.wait_for_log("results are", number)
        with site.run("one3", "two3"):
            pass
        assert redis.command("HLEN", "unacked") == 0


@pytest.mark.fault
@pytest.mark.parametrize("refusal", [*WRITES_REFUSED, RedisServer.master_down])
def test_commands_outlast_a_refusal_that_is_longer_than_a_lease(redis, tmp_path, refusal: Refusal):
    with site_at(tmp_path, redis, redis) as site:
        with site.run("one", "two"), refusal(redis):
            time.sleep(LEASE_DURATION + 5.0)
        assert "running tasks go on" in site.log
        assert "running tasks are ended" not in site.log
        with site.run("three", "four"):
            pass


def test_commands_outlast_rights_that_are_taken_away_for_a_moment(redis, tmp_path):
    user = redis.user("+@all", "~*", "&*")

    class OneUser(RedisServer):
        def __init__(self) -> None:
            self.url, self.port = user, redis.port

    with site_at(tmp_path, OneUser(), OneUser()) as site:
        with site.run("one", "two") as celeriac:
            with redis.without_rights(user):
                site.wait_for_log("the lease cannot be renewed, running tasks are ended")
            site.wait_for_log("the lease is renewed again")
            assert celeriac.process.poll() is None
        with site.run("three", "four"):
            pass


@pytest.mark.parametrize("pool", ["threads", slow("prefork")])
def test_a_worker_that_waits_to_store_a_result_ends_when_told_to(redis, tmp_path, pool):
    with site_at(tmp_path, redis, redis, "--grace", "1", "--pool", pool) as site:
        path = jobs(tmp_path, {"key": "one", "command": GATED})
        with started("run", path, "--broker", redis.url, "--backend", redis.url, cwd=tmp_path):
            until(lambda: site.starts, "the start", 60)
            with redis.full():
                site.open_gate()
                site.wait_for_log("results are kept")
                site.host.worker.signal(signal.SIGTERM)
                assert site.host.worker.process.wait(60) == 0


def test_a_message_that_redis_refuses_to_record_as_taken_is_not_lost(redis, tmp_path):
    """A worker waits for messages in a blocking call, so Redis hands one over while the worker is frozen."""
    with site_at(tmp_path, redis, redis) as site:
        site.host.freeze()
        redis.command("CONFIG", "RESETSTAT")
        path = jobs(tmp_path, {"key": "one", "command": "echo $CELERIAC_KEY >> starts"})
        with started("run", path, "--broker", redis.url, "--backend", redis.url, cwd=tmp_path) as celeriac:
            until(lambda: "cmdstat_lpush" in redis.command("INFO", "commandstats"), "a message on its way")
            with redis.full():
                site.host.thaw()
                site.wait_for_log("refuses requests, commands go on")
            ended = celeriac.wait()
        assert ended.status == 0, ended.err
        assert "re-sent" not in ended.err
        assert site.starts == ["one"]


def test_a_result_is_stored_once_a_read_only_database_accepts_writes(redis, postgres: PostgresServer, tmp_path):
    with site_at(tmp_path, redis, postgres) as site:
        for number in (1, 2):
            with site.run(f"one{number}", f"two{number}"), postgres.read_only():
                site.open_gate()
                site.wait_for_log("results are kept", number)
        with site.run("one3", "two3"):
            pass


@pytest.mark.parametrize("refusal", [RedisServer.full, RedisServer.read_only])
def test_a_worker_starts_on_a_redis_that_refuses_writes_and_waits_with_one_line(redis, tmp_path, refusal: Refusal):
    urls = ("--broker", redis.url, "--backend", redis.url)
    with refusal(redis):
        celeriac = Celeriac("worker", *urls, cwd=tmp_path)
        log = celeriac.wait_for_stderr("next attempt in")
    try:
        log += celeriac.wait_for_stderr("ready")
        log += celeriac.wait_for_stderr("available again")
    finally:
        celeriac.signal(signal.SIGTERM)
        ended = celeriac.wait()
    log += ended.err
    assert log.count("refuses requests") == 1
    assert "Traceback" not in log
    assert ended.status == 0


def url_that_is_refused(redis: RedisServer, kind: str) -> str:
    match kind:
        case "password":
            user, _, address = redis.user("+@all", "~*", "&*").partition("@")
            return f"{user.rpartition(':')[0]}:wrong@{address}"
        case "user":
            return f"redis://stranger:wrong@127.0.0.1:{redis.port}/0"
        case "database":
            return f"redis://127.0.0.1:{redis.port}/4000"
        case "scripts":
            return redis.user_without_scripts()
        case "channels":
            return redis.user_without_channels()
    return redis.user_without_keys()


@pytest.mark.parametrize("kind", ["password", "user", "database", "scripts", "channels", "keys"])
def test_a_worker_that_redis_refuses_for_good_ends_with_one_line(redis, tmp_path, kind):
    url = url_that_is_refused(redis, kind)
    ended = run("worker", "--broker", url, "--backend", url, cwd=tmp_path)
    assert ended.status == 2
    (line,) = without_password_warning(ended.err).splitlines()
    assert line.startswith("celeriac: ")
    assert "wrong" not in line


@pytest.mark.parametrize("place", ["broker", "backend"])
def test_the_line_names_the_server_that_refuses(redis, tmp_path, place):
    urls = {"broker": redis.url, "backend": redis.url, place: url_that_is_refused(redis, "keys")}
    ended = run("worker", "--broker", urls["broker"], "--backend", urls["backend"], cwd=tmp_path)
    assert ended.status == 2
    (line,) = without_password_warning(ended.err).splitlines()
    assert line.startswith(f"celeriac: {place}: redis://")
    assert "Traceback" not in line


@pytest.mark.parametrize("kind", ["user", "database"])
def test_a_worker_that_a_database_refuses_for_good_ends_with_one_line(redis, postgres: PostgresServer, tmp_path, kind):
    url = {
        "user": postgres.url.replace("postgres@", "stranger:wrong@"),
        "database": postgres.url.rpartition("/")[0] + "/nowhere",
    }[kind]
    ended = run("worker", "--broker", redis.url, "--backend", url, cwd=tmp_path)
    assert ended.status == 2
    (line,) = without_password_warning(ended.err).splitlines()
    assert line.startswith("celeriac: backend")
    assert "wrong" not in line


@pytest.mark.parametrize("kind", ["password", "host"])
def test_a_worker_that_rabbitmq_refuses_for_good_ends_with_one_line(redis, rabbit: RabbitServer, tmp_path, kind):
    url = {
        "password": rabbit.url.replace("guest:guest", "guest:wrong"),
        "host": f"amqp://guest:guest@127.0.0.1:{rabbit.port}/nowhere",
    }[kind]
    ended = run("worker", "--broker", url, "--backend", redis.url, cwd=tmp_path)
    assert ended.status == 2
    (line,) = without_password_warning(ended.err).splitlines()
    assert line.startswith("celeriac: broker: amqp://guest:")
    assert "wrong" not in line


def test_a_worker_waits_for_a_broker_that_is_not_there_with_one_line(redis, tmp_path):
    url = "redis://127.0.0.1:1/0"
    with started("worker", "--broker", url, "--backend", redis.url, cwd=tmp_path) as celeriac:
        log = celeriac.wait_for_stderr("next attempt in")
        celeriac.signal(signal.SIGTERM)
        ended = celeriac.wait()
    assert ended.status == 0
    assert (log + ended.err).count("Connection refused") == 1
