"""`celeriac status` against real brokers and a real worker."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from typing import Any

import pytest
from redis import Redis

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import LEASE_KEPT, Lease
from celeriac.broker.app import app_for
from celeriac.broker.publishers import publisher_for
from celeriac.config.settings import read_settings
from celeriac.task.task import Task
from tests.integration.test_worker import Site, touching, worker
from tests.support.cli_runner import run, run_in_process, until, without_password_warning
from tests.support.readers import close_readers as close_readers

pytestmark = pytest.mark.celery


def send(broker: str, backend: str, *tasks: Task) -> None:
    app = app_for(read_settings({"broker": broker, "backend": backend}, environment={}).connection)
    publisher = publisher_for(app)
    list(publisher.publish(tasks, timeout=5))
    publisher.close()


def test_status_shows_queues_ages_and_workers(redis, tmp_path):
    site = Site(redis.url)
    with worker(tmp_path, "--broker", redis.url, "--queues", "gpu,cpu", "-c", "3", "--name", "w1"):
        site.executor.queue_command("long", touching(tmp_path / "up", "sleep 60"), queue="gpu")
        site.drive((tmp_path / "up").exists)
        send(redis.url, redis.url, *(Task(key=n, command="true", priority=n) for n in range(5)))

        def status(*args: str) -> dict[str, Any]:
            shown: dict[str, Any] = json.loads(run("status", "--broker", redis.url, "--json", *args, cwd=tmp_path).out)
            return shown

        until(lambda: status()["workers"][0]["running"] == 1, "a lease with the running task")
        found, asked = status(), status("--ask")
        in_words = run("status", "--broker", redis.url, "--queues", "other", cwd=tmp_path)
    assert (asked["workers"][0]["running"], asked["workers"][0]["heartbeat_age"]) == (1, None)
    counts = [(queue["name"], queue["waiting"], queue["slots"]) for queue in found["queues"]]
    assert counts == [("cpu", 0, 3), ("default", 5, 0), ("gpu", 0, 3)]
    assert found["queues"][1]["oldest"] > 0
    assert found["queues"][0]["oldest"] is None
    (one,) = found["workers"]
    assert one.pop("name").startswith("w1@")
    assert 0 <= one.pop("heartbeat_age") < 10
    assert one.pop("host") == socket.gethostname()
    assert len(one.pop("tasks")) == 1
    assert {one.pop(name) for name in ("drained_by", "paused_by", "waits")} == {None}
    assert one.pop("paused") is False
    assert one == {"queues": ["cpu", "gpu"], "concurrency": 3, "running": 1, "refused": 0, "draining": False}
    assert "no worker serves queue default: start one with celeriac worker --queues default" in in_words.out
    assert in_words.status == 0
    assert "other" in in_words.out
    assert "cpu,gpu" in in_words.out
    redis.freeze()
    frozen = run("status", "--broker", redis.url, cwd=tmp_path)
    redis.kill()
    down = run("status", "--broker", redis.url.replace("//", "//:hunter2@"), cwd=tmp_path)
    for ended in (frozen, down):
        err = without_password_warning(ended.err)
        assert (ended.status, ended.out, err.count("\n")) == (1, "", 1)
        assert err.startswith("celeriac: redis://")
        assert " is unavailable: " in ended.err
        assert "hunter2" not in ended.err


def test_a_status_from_leases_imports_no_client(redis, tmp_path):
    """Celery, and the client library with its asynchronous half, take longer to import than all the rest."""
    claims = claims_for(app_for(read_settings({"broker": redis.url}, environment={}).connection), timeout=5)
    assert claims is not None
    claims.renew(Lease(holder="w1", name="w1@h", host="h", pid=1, boot_id="b", queues=("gpu",), slots=4))
    claims.close()
    slow = ("celery", "kombu", "amqp", "redis", "sqlalchemy", "asyncio", "opentelemetry", "rich.console", "psutil")
    program = f"""
import atexit, sys
atexit.register(lambda: print([name for name in {slow!r} if name in sys.modules]))
from celeriac.cli import main
main(["status", "--broker", {redis.url!r}], standalone_mode=False)
"""
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert [line.split() for line in shown.stdout.splitlines()] == [
        ["queue", "waiting", "oldest", "slots"],
        *(["default", "0", "0"], ["gpu", "0", "4"], []),
        ["worker", "queues", "concurrency", "running"],
        ["w1@h", "gpu", "4", "0"],
        ["[]"],
    ]


def test_a_queue_that_no_worker_serves_is_listed_if_tasks_wait_in_it(redis, tmp_path):
    send(redis.url, redis.url, Task(key="a", command="true", queue="left over", priority=5))
    with Redis.from_url(redis.url) as client:
        client.rpush("a list of another program", "not a message", '{"properties": 1}')
    shown = run("status", "--broker", redis.url, "--json", cwd=tmp_path)
    queues = {queue["name"]: (queue["waiting"], queue["slots"]) for queue in json.loads(shown.out)["queues"]}
    assert queues == {"default": (0, 0), "left over": (1, 0)}


def test_a_killed_worker_is_suspected_although_no_executor_has_declared_it_dead(redis, tmp_path):
    app = app_for(read_settings({"broker": redis.url}, environment={}).connection)
    claims = claims_for(app, timeout=5)
    assert claims is not None
    queues = tuple(f"queue-{number}" for number in range(12))
    lease = Lease(holder="w1", name="w1@h", host="h", pid=1, boot_id="b", queues=queues, slots=4)
    claims.renew(lease)
    claims.close()
    with Redis.from_url(redis.url) as client:
        client.expire("celeriac-lease-w1", LEASE_KEPT - 60)  # as it is a minute after the last renewal
    shown = run_in_process("status", "--broker", redis.url, cwd=tmp_path)
    assert re.search(r"no heartbeat for [6-9]\d s", shown.out)  # a little later than at 60 s
    for width in (80, 40):
        narrow = run_in_process("status", "--broker", redis.url, cwd=tmp_path, env={"COLUMNS": str(width)})
        assert max(map(len, narrow.out.splitlines())) <= width
        assert "no heartbeat" in narrow.out
    slots = json.loads(run_in_process("status", "--broker", redis.url, "--json", cwd=tmp_path).out)["queues"]
    assert {queue["slots"] for queue in slots} == {0}


def test_status_of_rabbitmq_has_counts_without_ages(rabbit, tmp_path):
    send(rabbit.url, "cache+memory://", *(Task(key=n, command="true") for n in range(3)))

    def waiting() -> list[dict[str, object]]:
        command = [
            "status",
            "--broker",
            rabbit.url,
            "--backend",
            "cache+memory://",
            "--queues",
            "default,new",
            "--json",
        ]
        queues: list[dict[str, object]] = json.loads(run(*command, cwd=tmp_path).out)["queues"]
        return queues

    no_workers = {"oldest": None, "slots": 0}
    expected = [{"name": "default", "waiting": 3, **no_workers}, {"name": "new", "waiting": 0, **no_workers}]
    until(lambda: waiting() == expected, "the counts")


def test_a_queue_of_rabbitmq_is_listed_after_its_last_worker_has_gone(redis, rabbit, tmp_path):
    app = app_for(read_settings({"broker": rabbit.url, "backend": redis.url}, environment={}).connection)
    claims = claims_for(app, timeout=5)
    assert claims is not None
    claims.renew(Lease(holder="w1", name="w1@h", host="h", pid=1, boot_id="b", queues=("old", "empty"), slots=4))
    claims.end_lease("w1")
    claims.close()
    send(rabbit.url, redis.url, Task(key="a", command="true", queue="old"))

    def queues() -> dict[str, tuple[int, int]]:
        command = ["status", "--broker", rabbit.url, "--backend", redis.url, "--json"]
        shown = json.loads(run(*command, cwd=tmp_path).out)
        return {queue["name"]: (queue["waiting"], queue["slots"]) for queue in shown["queues"]}

    until(lambda: queues().get("old") == (1, 0), "the task in the unserved queue")
    assert "empty" not in queues()
