"""The gate before real consumers: malformed messages beside good ones, on Redis and on RabbitMQ."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from celeriac.broker.app import make_app
from celeriac.config.signing import SigningKeys
from celeriac.task.task import Task
from tests.support.cli_runner import Celeriac, run, started, until
from tests.support.malformed import (
    MALFORMED,
    MAX_SIZE,
    Message,
    callback,
    header,
    message_of,
    on_redis_only,
)
from tests.support.malformed import (
    NO_CALLBACKS as CALLBACKS,
)
from tests.support.raw_brokers import RawRabbit, RawRedis
from tests.support.servers import RedisServer, Server

pytestmark = pytest.mark.celery

KEY = "correct horse battery"
GOOD = 30


def good_tasks(folder: Path, number: int = GOOD) -> list[Task]:
    return [Task(key=f"good-{n}", command=f"echo $CELERIAC_KEY >> {folder}/log") for n in range(number)]


def runs(folder: Path) -> list[str]:
    log = folder / "log"
    return sorted(log.read_text().split()) if log.exists() else []


# — workers —


@contextlib.contextmanager
def worker(folder: Path, broker: str, backend: str, *options: str, key: str | None = None) -> Iterator[Celeriac]:
    urls = ("--broker", broker, "--backend", backend, "-c", "4", "--log-format", "json")
    env = {"CELERIAC_MAX_MESSAGE_SIZE": str(MAX_SIZE), **({} if key is None else {"CELERIAC_SIGNING_KEY": key})}
    with (
        (folder / "worker.log").open("wb") as log,
        started("worker", *urls, *options, cwd=folder, env=env, log=log) as it,
    ):
        until(lambda: '"ready"' in worker_log(folder), "the start of the worker", 60)
        yield it


def worker_log(folder: Path) -> str:
    return (folder / "worker.log").read_text()


def workers(broker: str, backend: str, folder: Path) -> list[dict[str, Any]]:
    found = run("status", "--broker", broker, "--backend", backend, "--json", cwd=folder)
    assert found.status == 0, found.err
    listed: list[dict[str, Any]] = json.loads(found.out)["workers"]
    return listed


def refused_messages(broker: str, backend: str, folder: Path) -> list[dict[str, Any]]:
    found = run("status", "--refused", "--broker", broker, "--backend", backend, "--json", cwd=folder)
    assert found.status == 0, found.err
    listed: list[dict[str, Any]] = json.loads(found.out)["refused"]
    return listed


def stop(celeriac: Celeriac, folder: Path) -> None:
    celeriac.signal(signal.SIGTERM)
    assert celeriac.process.wait(60) == 0
    assert "Traceback" not in worker_log(folder)


@pytest.fixture(params=["redis", "redis key", "rabbit key"])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[Any, str, str, str | None]]:
    """A broker, its URL, the URL of a backend, and the workers' key."""
    kind, *keys = request.param.split()
    key = KEY if keys else None
    if kind == "redis":
        server: Server = request.getfixturevalue("shared_redis")
        with Redis(port=server.port) as client:
            client.flushall()
        raw: RawRedis | RawRabbit = RawRedis(server)
        backend = server.url
    else:
        server = request.getfixturevalue("rabbit")
        raw, backend = RawRabbit(server), request.getfixturevalue("postgres").url
    yield raw, server.url, backend, key
    raw.close()


def test_malformed_messages_beside_good_ones_cost_nothing_but_a_line(site, tmp_path):
    raw, broker, backend, key = site
    keys = SigningKeys.of(key)
    with worker(tmp_path, broker, backend, key=key) as celeriac:
        bad = raw.carriable([change(message_of(Task(key=name, command="true"))) for name, change in MALFORMED.items()])
        bad += raw.strange(lambda: message_of(Task(key="k", command="true")))
        good = raw.carriable([message_of(task, keys) for task in good_tasks(tmp_path)])
        assert len(bad) > 113
        for n in range(GOOD):
            raw.put([*bad[n::GOOD], good[n]])
        until(lambda: len(runs(tmp_path)) == GOOD, "the end of the good tasks", 60)
        until(lambda: workers(broker, backend, tmp_path)[0]["refused"] == len(bad), "all refusals", 60)
        until(raw.is_empty, "the acknowledgements")
        (one,) = workers(broker, backend, tmp_path)
        newest = refused_messages(broker, backend, tmp_path)
        assert celeriac.process.poll() is None
        stop(celeriac, tmp_path)
    assert one["running"] == 0
    assert runs(tmp_path) == sorted(str(task.key) for task in good_tasks(tmp_path))
    assert len(newest) == 100
    lines = [json.loads(line) for line in worker_log(tmp_path).splitlines() if line.startswith("{")]
    assert len([line for line in lines if line["event"] == "refused"]) == len(bad)


# — what becomes of a refused message —


@pytest.fixture
def redis_raw(shared_redis: RedisServer) -> Iterator[tuple[RawRedis, Redis, str]]:
    """An empty Redis: as a queue of raw messages, its client, and its URL."""
    with Redis(port=shared_redis.port) as client, contextlib.closing(RawRedis(shared_redis)) as raw:
        client.flushall()
        yield raw, client, shared_redis.url


def outcome(client: Redis, task: Task) -> tuple[str, Any]:
    """Return the state and the result that Celery has stored for a task."""
    stored = client.get(f"celery-task-meta-{task.message_id}")
    if stored is None:
        return "", None
    meta = json.loads(stored)
    return meta["status"], meta["result"]


def refused_outcome(client: Redis, task: Task) -> str:
    """Return the detail of a task that ended as refused."""
    until(lambda: outcome(client, task)[0] == "FAILURE", f"the end of {task.key}")
    (report,) = outcome(client, task)[1]["exc_message"]
    assert report["reason"] == "refused"
    return str(report["detail"])


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_refused_message_ends_its_task_unless_it_has_been_claimed(redis_raw, tmp_path, pool):
    raw, client, url = redis_raw
    late = Task(key="late", command="true")
    large = Task(key="large", command=("true", "x" * MAX_SIZE))
    huge = Task(key="huge", command=("true", "x" * (MAX_SIZE * 3 + 1_000_000)))
    running = Task(key="running", command=f"touch {tmp_path}/up; until [ -e {tmp_path}/go ]; do sleep 0.02; done")
    with worker(tmp_path, url, url, "--pool", pool) as celeriac:
        raw.put([message_of(running).on_redis()])
        until((tmp_path / "up").exists, "the start of the command")
        eta = MALFORMED["header eta 1"]
        raw.put([eta(message_of(task)).on_redis() for task in (running, late)])
        raw.put([message_of(task).on_redis() for task in (large, huge)])
        assert refused_outcome(client, late).startswith("its worker did not run it: its headers are malformed: ")
        expected = "its worker did not run it: it is larger than 200,000 bytes: raise max_message_size, or send less"
        assert [refused_outcome(client, task) for task in (large, huge)] == [expected] * 2
        assert outcome(client, running)[0] == "STARTED"
        (tmp_path / "go").touch()
        until(lambda: outcome(client, running)[0] == "SUCCESS", "the end of the running task")
        until(raw.is_empty, "the acknowledgements")
        stop(celeriac, tmp_path)


@pytest.mark.parametrize("key", [None, KEY])
def test_neither_built_in_tasks_nor_callbacks_run(redis_raw, tmp_path, key):
    raw, client, url = redis_raw
    trap = {"task": "any.task", "args": [], "kwargs": {}, "options": {"queue": "trap"}}
    built_in = Task(key="built-in", command="true")
    bad = [
        header("task", name)(message_of(built_in))
        for name in ("celery.backend_cleanup", "celery.chord_unlock", "celery.chain", "celery.accumulate")
    ]
    bad += [callback(name, [trap])(message_of(Task(key=name, command="true"))) for name in CALLBACKS]
    bad += [header(name, [trap])(message_of(Task(key=name, command="true"))) for name in CALLBACKS]
    with worker(tmp_path, url, url, key=key) as celeriac:
        raw.put([message.on_redis() for message in bad])
        until(lambda: workers(url, url, tmp_path)[0]["refused"] == len(bad), "all refusals")
        until(raw.is_empty, "the acknowledgements")
        stop(celeriac, tmp_path)
    assert client.llen("trap") == 0


def test_refused_messages_are_listed_without_their_content(redis_raw, tmp_path):
    raw, _, url = redis_raw
    assert run("status", "--refused", "--broker", url, cwd=tmp_path).out == "no message was refused\n"
    secret = Task(key="k", command=("true", "hunter2"), env={"PASSWORD": "hunter2"})
    with worker(tmp_path, url, url, "--name", "w1", key=KEY) as celeriac:
        raw.put([MALFORMED["header expires 1"](message_of(secret)).on_redis(), message_of(secret).on_redis()[:-1]])
        raw.put([message_of(Task(key="unsigned", command="true", env={"PASSWORD": "hunter2"})).on_redis()])
        until(lambda: len(refused_messages(url, url, tmp_path)) == 3, "the list")
        stop(celeriac, tmp_path)
    listed = refused_messages(url, url, tmp_path)
    assert sorted(one["why"] for one in listed) == [
        "it is not JSON",
        "its headers are malformed: Expected `null`, got `str` - at `$.expires`",
        "its message is not signed",
    ]
    assert {one["queue"] for one in listed} == {"default"}
    assert {one["worker"].partition("@")[0] for one in listed} == {"w1"}
    assert all(one["size"] > 100 for one in listed if one["why"] != "its message is not signed")
    text = run("status", "--refused", "--broker", url, cwd=tmp_path)
    assert text.status == 0
    for shown in (json.dumps(listed), text.out, worker_log(tmp_path)):
        assert secret.message_id in shown
        assert "hunter2" not in shown


def test_a_list_that_cannot_be_kept_costs_one_line(redis_raw, tmp_path):
    raw, client, url = redis_raw
    client.set("celeriac-refused", "not a list")
    with worker(tmp_path, url, url) as celeriac:
        raw.put([b"garbage"] * 5)
        raw.put([message_of(task).on_redis() for task in good_tasks(tmp_path, 3)])
        until(lambda: workers(url, url, tmp_path)[0]["refused"] == 5, "all refusals")
        until(lambda: len(runs(tmp_path)) == 3, "the end of the good tasks")
        stop(celeriac, tmp_path)
    assert worker_log(tmp_path).count("refused messages are not kept for now: ResponseError: WRONGTYPE") == 1


@pytest.mark.parametrize("backend", ["cache+memory://"])
def test_a_backend_that_keeps_no_list_is_named(redis_raw, tmp_path, backend):
    ended = run("status", "--refused", "--broker", redis_raw[2], "--backend", backend, cwd=tmp_path)
    assert (ended.status, ended.err) == (
        2,
        "celeriac: backend: 'cache+memory' keeps no refused messages; give Redis, Valkey or a database\n",
    )


WRONG_IDS: list[Any] = [5, [5, {}], [["x"]], None, {}, "\ud800"]


def test_garbage_on_the_control_channel_leaves_the_worker_alone(redis_raw, tmp_path):
    raw, client, url = redis_raw
    with worker(tmp_path, url, url) as celeriac:
        for _, text in on_redis_only(message_of(Task(key="k", command="true"))):
            client.publish("/0.celery.pidbox", text)
        for ids in WRONG_IDS:
            client.publish("/0.celery.pidbox", control_message({"method": "revoke", "arguments": {"task_id": ids}}))
        raw.put([message_of(task).on_redis() for task in good_tasks(tmp_path, 3)])
        until(lambda: len(runs(tmp_path)) == 3, "the end of the good tasks")
        assert len(workers(url, url, tmp_path)) == 1
        celeriac.signal(signal.SIGTERM)
        assert celeriac.process.wait(60) == 0


def control_message(payload: dict[str, Any]) -> bytes:
    message = Message(headers={}, body=json.dumps({"destination": None, **payload}).encode())
    return json.dumps(message.envelope("")).encode()


# — a Celery worker of a user —

USERS_WORKER = """
import sys
import celeriac
from celery import Celery

app = Celery("site", broker=sys.argv[1], backend=sys.argv[1])
celeriac.register_task(app, max_message_size=int(sys.argv[2]))

@app.task(name="site.write")
def write(path, text):
    with open(path, "a") as file:
        file.write(text)

app.Worker(pool="threads", concurrency=2, queues=["default"], loglevel="ERROR", quiet=True).start()
"""


def test_a_users_own_worker_has_the_gate_before_our_task_alone(redis_raw, tmp_path):
    raw, _, url = redis_raw
    for_our_task = {
        name: change(message_of(Task(key=name, command="true")))
        for name, change in MALFORMED.items()
        if not name.startswith(("header task", "no header", "header compression", "compressed", "a bomb"))
    }
    app = make_app(broker_url=url, result_backend=url)
    with subprocess.Popen([sys.executable, "-c", USERS_WORKER, url, str(MAX_SIZE)], cwd=tmp_path) as process:
        try:
            app.send_task("site.write", (str(tmp_path / "first"), "x"), queue="default", expires=600)
            until((tmp_path / "first").exists, "the start of the worker", 60)
            raw.put([message.on_redis() for message in for_our_task.values()])
            raw.put([message_of(task).on_redis() for task in good_tasks(tmp_path, 3)])
            app.send_task("site.write", (str(tmp_path / "last"), "x"), queue="default", countdown=0.1)
            until(lambda: len(runs(tmp_path)) == 3 and (tmp_path / "last").exists(), "the end of the good tasks", 60)
            until(raw.is_empty, "the acknowledgements")
            assert process.poll() is None
        finally:
            process.terminate()
    app.close()
    assert len(refused_messages(url, url, tmp_path)) == 100
