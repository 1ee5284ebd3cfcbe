"""A pause of a live run on Redis, and on RabbitMQ with PostgreSQL, while its broker or its executor goes away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.test_cancel import job, url
from tests.support.cli_runner import jobs, run, started, until
from tests.support.servers import Server
from tests.support.shell import CTRL_Z, Shell
from tests.support.workers import GATED, read_log, worker

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture
LEDGER = "--ledger=ledger.db"
COMMAND = GATED + "; touch $CELERIAC_KEY.ended"


class Place(NamedTuple):
    """Where the tasks of a test run."""

    broker: Server
    urls: tuple[str, str]

    @property
    def options(self) -> tuple[str, ...]:
        return "--broker", self.urls[0], "--backend", self.urls[1]


@pytest.fixture(params=["redis", "rabbitmq"])
def place(request) -> Place:
    if request.param == "redis":
        redis_url = request.getfixturevalue("url")
        return Place(request.getfixturevalue("shared_redis"), (redis_url, redis_url))
    rabbit = request.getfixturevalue("rabbit")
    return Place(rabbit, (rabbit.url, request.getfixturevalue("postgres").url))


def state_of(folder: Path, key: str) -> str:
    shown = run("show", "jobs", LEDGER, "--json", cwd=folder).out
    return next(str(task["state"]) for task in map(json.loads, shown.splitlines()) if task["key"] == key)


def end_while_frozen(broker: Server, folder: Path) -> None:
    """Freeze the broker, let the command `a` end, and thaw the broker."""
    broker.freeze()
    (folder / "go-a").touch()
    until((folder / "a.ended").exists, "the end of a command")
    broker.thaw()


def test_nothing_starts_twice_or_too_early_when_the_broker_and_the_executor_go_away(place, tmp_path):
    file, log = jobs(tmp_path, *(job(key, COMMAND, cwd=str(tmp_path)) for key in "abcde")), tmp_path / "log"
    words = ("run", file, *place.options, LEDGER, "--json")
    with worker(tmp_path, place.urls, "--concurrency", "3"):
        with started(*words, "-j2", cwd=tmp_path) as celeriac:
            until(lambda: sorted(read_log(log)) == ["a", "b"], "both slots")
            assert run("pause", "jobs", *place.options, LEDGER, cwd=tmp_path).status == 0
            end_while_frozen(place.broker, tmp_path)
            until(lambda: state_of(tmp_path, "a") == "success", "the end of a task")
            assert sorted(read_log(log)) == ["a", "b"]
            celeriac.kill()
        (tmp_path / "go").touch()
        ended = run(*words, "--resume", cwd=tmp_path)
    assert (ended.status, ended.summary["failed"]) == (0, 0)
    assert sorted(read_log(log)) == [*"abcde"]
    assert {state_of(tmp_path, key) for key in "abcde"} == {"success"}


def test_ctrl_z_leaves_the_tasks_of_workers_elsewhere_alone_and_fg_goes_on(place, tmp_path):
    jobs(tmp_path, *(job(key, COMMAND, cwd=str(tmp_path)) for key in "abc"))
    log = tmp_path / "log"
    with worker(tmp_path, place.urls, "--concurrency", "3"), Shell(tmp_path) as shell:
        shell.type(f"celeriac run {' '.join(place.options)} {LEDGER} -j2 jobs.jsonl\n")
        until(lambda: sorted(read_log(log)) == ["a", "b"], "both slots")
        shell.type(CTRL_Z)
        shown = shell.wait_for("Stopped")
        end_while_frozen(place.broker, tmp_path)  # the stopped executor knows nothing of it
        assert sorted(read_log(log)) == ["a", "b"]
        (tmp_path / "go").touch()
        shell.type("fg\n")
        shell.wait_for("3 tasks: 3 succeeded, 0 failed", after=shown)
    assert sorted(read_log(log)) == [*"abc"]
