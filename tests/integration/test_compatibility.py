"""This version beside the one before: messages, leases, ledgers, journals and control requests of one in the other.

`make test-compatibility` installs the version before and names its Python in CELERIAC_PREVIOUS.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_runner import Celeriac, Ended, jobs, run, started, until
from tests.support.servers import PostgresServer, RabbitServer, RedisServer
from tests.support.workers import wait_for_reply

pytestmark = pytest.mark.compatibility

OLD, NEW = os.environ.get("CELERIAC_PREVIOUS", "CELERIAC_PREVIOUS is not set"), sys.executable
BOTH_WAYS = pytest.mark.parametrize(("sender", "runner"), [(NEW, OLD), (OLD, NEW)], ids=["new-old", "old-new"])
GATE = "while [ ! -e go ]; do sleep 0.02; done"
KEY = "a signing key of more than sixteen characters"
STILL_OWNED = re.compile("is (at work|running) in process")  # the words of the version before, and of this one


def job(key: str, then: str = "true", **fields: Any) -> dict[str, Any]:
    return {"key": key, "command": f"echo $CELERIAC_KEY >> ran; {then}", **fields}


def ran(folder: Path) -> Counter[str]:
    file = folder / "ran"
    return Counter(file.read_text().split()) if file.exists() else Counter()


@contextmanager
def worker(python: str, folder: Path, urls: tuple[str, str], *options: str, **env: str) -> Iterator[Celeriac]:
    at = ("--broker", urls[0], "--backend", urls[1], "--log-level", "error")
    with started("worker", *at, *options, cwd=folder, python=python, env=env) as celeriac:
        wait_for_reply(urls)
        yield celeriac


VARIED = [
    job("plain"),
    job("fails", "echo aside >&2; exit 3", retries=1, retry_delay=0.1),
    job("timed-out", "sleep 60", timeout=0.3, grace=0.2),
    job("with-secret", 'test "$TOKEN" = hunter2', env={"TOKEN": "hunter2"}),
    job("after", needs=["plain"], priority=9),
    job("never", needs=["fails"]),
    {"key": "list", "command": ["sh", "-c", "echo list >> ran"], "cwd": "."},
]


@BOTH_WAYS
@pytest.mark.parametrize("kind", ["redis", "rabbit"])
def test_a_worker_of_one_version_runs_what_the_other_sends(kind, sender, runner, request, tmp_path):
    urls = urls_of(kind, request)
    varied = [{**one, "cwd": str(tmp_path)} for one in VARIED]
    with worker(runner, tmp_path, urls, "--concurrency", "2", CELERIAC_SIGNING_KEY=KEY):
        at = ("--broker", urls[0], "--backend", urls[1])
        env = {"CELERIAC_SIGNING_KEY": KEY}
        ended = run("run", jobs(tmp_path, *varied), "--json", *at, cwd=tmp_path, python=sender, env=env)
    summary = ended.summary
    assert (summary["succeeded"], summary["failed"], summary["skipped"]) == (4, 2, 1), ended.err
    reasons = {failure["key"]: failure["reason"] for failure in summary["failures"]}
    assert reasons == {"fails": "exit_code", "timed-out": "timeout"}
    assert ran(tmp_path) == {"plain": 1, "fails": 2, "timed-out": 1, "with-secret": 1, "after": 1, "list": 1}


def urls_of(kind: str, request: pytest.FixtureRequest) -> tuple[str, str]:
    if kind == "redis":
        redis: RedisServer = request.getfixturevalue("redis")
        return redis.url, redis.url
    rabbit: RabbitServer = request.getfixturevalue("rabbit")
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return rabbit.url, postgres.url


@BOTH_WAYS
@pytest.mark.parametrize("kind", ["redis", "rabbit"])
def test_a_killed_worker_of_one_version_is_noticed_by_the_other(kind, sender, runner, request, tmp_path):
    urls = urls_of(kind, request)
    file = jobs(tmp_path, *(job(f"k{n}", GATE, cwd=str(tmp_path)) for n in range(4)))
    at = ("--broker", urls[0], "--backend", urls[1])
    with (
        worker(runner, tmp_path, urls, "--concurrency", "2") as victim,
        started("run", file, "--json", *at, cwd=tmp_path, python=sender) as celeriac,
    ):
        until(lambda: ran(tmp_path).total() == 2, "two commands")
        victim.kill()
        with worker(sender, tmp_path, urls, "--concurrency", "4"):
            until(lambda: ran(tmp_path).total() == 6, "the second start of the lost commands", 90.0)
            (tmp_path / "go").touch()
            ended = celeriac.wait()
    assert (ended.status, ended.summary["succeeded"]) == (0, 4)
    assert sorted(ran(tmp_path).values()) == [1, 1, 2, 2]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_ledger_of_the_version_before_resumes(kind, request, tmp_path):
    at = ("--ledger", ledger_of(kind, request, tmp_path))
    names = [f"k{n}" for n in range(6)]
    file = jobs(
        tmp_path, *(job(name, GATE if n > 1 else "true") for n, name in enumerate(names)), job("x", needs=names)
    )
    with started("run", file, "-j2", "--json", *at, cwd=tmp_path, python=OLD) as celeriac:
        until(lambda: ran(tmp_path).total() == 4, "two that run after two that ended")
        celeriac.kill()
    (tmp_path / "go").touch()
    ended = resume(NEW, tmp_path, file, *at)
    assert ended.summary["succeeded"] + ended.summary["had_succeeded"] == 7
    assert ran(tmp_path) == {"k0": 1, "k1": 1, "k2": 2, "k3": 2, "k4": 1, "k5": 1, "x": 1}
    shown = run("show", "--json", *at, cwd=tmp_path)
    assert all(json.loads(line)["state"] == "success" for line in shown.out.splitlines() if '"state"' in line)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_ledger_of_this_version_resumes_in_the_version_before(kind, request, tmp_path):
    at = ("--ledger", ledger_of(kind, request, tmp_path))
    file = jobs(tmp_path, *(job(f"k{n}", GATE if n else "true") for n in range(4)), name="other.jsonl")
    with started("run", file, "-j2", "--json", *at, cwd=tmp_path) as celeriac:
        until(lambda: ran(tmp_path).total() == 3, "two that run after one that ended")
        celeriac.kill()
    (tmp_path / "go").touch()
    ended = resume(OLD, tmp_path, file, *at)
    assert ended.summary["succeeded"] + ended.summary["had_succeeded"] == 4
    assert ran(tmp_path) == {"k0": 1, "k1": 2, "k2": 2, "k3": 1}


def resume(python: str, folder: Path, file: Path, *at: str) -> Ended:
    """Resume a killed run, once the lease of its owner has expired: on a server that is the only proof of its death."""
    ended: list[Ended] = []

    def has_resumed() -> bool:
        ended[:] = [run("run", file, "--resume", "--json", *at, cwd=folder, python=python)]
        return not STILL_OWNED.search(ended[0].err)

    until(has_resumed, "the end of the lease")
    assert ended[0].status == 0, ended[0].err
    return ended[0]


def ledger_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if kind == "sqlite":
        return str(folder / "ledger.db")
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.url.removeprefix("db+")


@BOTH_WAYS
def test_tasks_in_flight_are_followed_by_the_other_version(sender, runner, redis, tmp_path):
    at = ("--ledger", str(tmp_path / "ledger.db"), "--broker", redis.url)
    file = jobs(tmp_path, *(job(f"k{n}", GATE, cwd=str(tmp_path)) for n in range(6)))
    with worker(sender, tmp_path, (redis.url, redis.url), "--concurrency", "2"):
        with started("run", file, "--json", *at, cwd=tmp_path, python=sender) as celeriac:
            until(lambda: ran(tmp_path).total() == 2, "two commands")
            celeriac.signal(signal.SIGKILL)
            celeriac.process.wait()
        (tmp_path / "go").touch()
        ended = run("run", file, "--resume", "--json", *at, cwd=tmp_path, python=runner)
    assert (ended.status, ended.summary["succeeded"]) == (0, 6), ended.err
    assert ran(tmp_path) == {f"k{n}": 1 for n in range(6)}


@BOTH_WAYS
@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_the_control_commands_of_one_version_reach_a_run_of_the_other(place, sender, runner, redis, tmp_path):
    at = ("--broker", redis.url) if place == "elsewhere" else ()
    file = jobs(tmp_path, job("runs", GATE, cwd=str(tmp_path)), job("waits", cwd=str(tmp_path)))
    with (
        worker(sender, tmp_path, (redis.url, redis.url), "--concurrency", "1"),
        started("run", file, "-j1", "--json", *at, cwd=tmp_path, python=sender) as celeriac,
    ):
        until(lambda: ran(tmp_path)["runs"], "the first command")
        explained = run("explain", "waits", "--json", *at, cwd=tmp_path, python=runner)
        cancelled = run("cancel", "waits", "--json", *at, cwd=tmp_path, python=runner)
        (tmp_path / "go").touch()
        ended = celeriac.wait()
    assert explained.status == 0, explained.err
    assert [life["state"] for life in json.loads(explained.out)["lives"]] == ["waiting"]
    assert cancelled.status == 0, cancelled.err
    assert (ended.summary["succeeded"], ended.summary["revoked"] + ended.summary["never_ran"] > 0) == (1, True)


@BOTH_WAYS
def test_the_owner_of_one_version_serves_what_the_other_submits(sender, runner, tmp_path):
    at = ("--ledger", str(tmp_path / "ledger.db"))
    file = jobs(tmp_path, *(job(f"k{n}", cwd=str(tmp_path)) for n in range(4)))
    with started("serve", *at, cwd=tmp_path, python=runner) as service:
        ended = run("submit", file, "--wait", *at, cwd=tmp_path, python=sender)
        service.signal(signal.SIGTERM)
        service.process.wait()
    assert ended.status == 0, ended.err
    assert ran(tmp_path) == {f"jobs/k{n}": 1 for n in range(4)}
