"""`celeriac autoscale` with the programs of a scheduler whose jobs are real workers on this machine."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.integration.test_cancel import url
from tests.support.cli_runner import Celeriac, Ended, jobs, run, started, until
from tests.support.fake_scheduler import FakeScheduler
from tests.support.servers import PostgresServer, RabbitServer, RedisServer
from tests.support.workers import GATED, read_log

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture

PASSWORD = "hush-hush"
QUICK = ("--interval", "0.5", "--idle-exit", "2")


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[FakeScheduler]:
    with closing(FakeScheduler(tmp_path / "scheduler", nodes=2)) as scheduler:
        yield scheduler


class Environment(Protocol):
    """A scheduler whose programs run in an environment of its own."""

    @property
    def environment(self) -> dict[str, str]: ...


class Autoscaling:
    """A running autoscaler, and its events."""

    def __init__(self, celeriac: Celeriac, log: Path) -> None:
        self._celeriac, self._log = celeriac, log

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if kind in (None, line["event"])]

    def kill(self) -> None:
        self._celeriac.process.kill()
        self._celeriac.process.wait()

    def stop(self) -> dict[str, Any]:
        self._celeriac.signal(signal.SIGTERM)
        assert self._celeriac.process.wait() == 0
        return self.events()[-1]


@contextmanager
def autoscaling(folder: Path, scheduler: Environment, *options: str, kind: str = "slurm") -> Iterator[Autoscaling]:
    log = folder / "autoscale.log"
    command = ("autoscale", kind, *QUICK, "--json", *options)
    with (
        log.open("wb") as output,
        started(*command, cwd=folder, env=scheduler.environment, stdout=output) as celeriac,
    ):
        yield Autoscaling(celeriac, log)


def check_submits_as_tasks_wait(folder: Path, scheduler: FakeScheduler, servers: tuple[str, ...], kind: str) -> None:
    lines = [{"key": f"k{n}", "command": "echo $CELERIAC_KEY >> log; sleep 0.3"} for n in range(12)]
    with autoscaling(folder, scheduler, "--max", "2", "--slots", "2", *servers, kind=kind) as scaling:
        until(lambda: scaling.events("state"), "the first look")
        assert scheduler.jobs() == {}
        ended = run("run", jobs(folder, *lines), *servers, "--json", cwd=folder)
        submitted = [number for event in scaling.events("submitted") for number in event["allocations"]]
        until(lambda: scheduler.jobs() == {}, "the end of idle workers")
        last = scaling.stop()
    assert ended.summary["succeeded"] == 12
    assert len(submitted) in (1, 2)
    assert sorted(read_log(folder / "log")) == sorted(f"k{n}" for n in range(12))
    assert scaling.events("failed") == []
    assert (last["event"], last["allocations"]) == ("stopped", [])


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_allocations_come_with_the_tasks_and_end_without_them(url, tmp_path, scheduler, kind):
    check_submits_as_tasks_wait(tmp_path, scheduler, ("--broker", url), kind)


def test_allocations_on_rabbitmq_and_postgresql(
    rabbit: RabbitServer, postgres: PostgresServer, tmp_path, scheduler: FakeScheduler
):
    check_submits_as_tasks_wait(tmp_path, scheduler, ("--broker", rabbit.url, "--backend", postgres.url), "slurm")


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_pending_allocations_are_cancelled_at_the_end_and_found_again_after_a_kill(url, tmp_path, scheduler, kind):
    scheduler.set_nodes(1)
    file = jobs(tmp_path, *({"key": f"k{n}", "command": GATED} for n in range(9)))
    options = ("--max", "3", "--broker", url)
    with started("run", file, "--broker", url, "--json", cwd=tmp_path) as executor:
        with autoscaling(tmp_path, scheduler, *options, kind=kind) as scaling:
            until(lambda: len(scheduler.jobs()) == 3, "three allocations")
            until(lambda: read_log(tmp_path / "log"), "the first task")
            scaling.kill()
        submissions = len(scheduler.calls("sbatch") + scheduler.calls("qsub"))
        with autoscaling(tmp_path, scheduler, *options, kind=kind) as scaling:
            until(lambda: any(event["pending"] == 2 for event in scaling.events()), "its own allocations")
            last = scaling.stop()
        assert len(scheduler.calls("sbatch") + scheduler.calls("qsub")) == submissions
        assert (len(last["allocations"]), [*scheduler.jobs().values()]) == (2, ["RUNNING"])
        (tmp_path / "go").touch()
        assert executor.wait().summary["succeeded"] == 9
    until(lambda: scheduler.jobs() == {}, "the end of the idle worker")


def check_killed_allocation(folder: Path, scheduler: FakeScheduler, servers: tuple[str, ...]) -> None:
    """Kill an allocation with a task: another one starts and runs it."""
    file = jobs(folder, {"key": "k", "command": GATED})
    with (
        autoscaling(folder, scheduler, "--max", "2", *servers),
        started("run", file, *servers, "--json", cwd=folder) as executor,
    ):
        until(lambda: read_log(folder / "log") == ["k"], "the start of the task")
        (number,) = scheduler.jobs()
        scheduler.kill(number)
        until(lambda: read_log(folder / "log") == ["k", "k"], "the second start")
        (folder / "go").touch()
        assert executor.wait().summary["succeeded"] == 1


def test_another_allocation_replaces_a_killed_one(url, tmp_path, scheduler):
    check_killed_allocation(tmp_path, scheduler, ("--broker", url))


def test_another_allocation_replaces_a_killed_one_on_rabbitmq(
    rabbit: RabbitServer, postgres: PostgresServer, tmp_path, scheduler: FakeScheduler
):
    check_killed_allocation(tmp_path, scheduler, ("--broker", rabbit.url, "--backend", postgres.url))


def test_an_unavailable_broker_costs_one_line_and_no_allocation(redis: RedisServer, tmp_path, scheduler):
    with autoscaling(tmp_path, scheduler, "--max", "2", "--broker", redis.url) as scaling:
        until(lambda: scaling.events("state"), "the first look")
        redis.kill()
        until(lambda: scaling.events("unavailable"), "an unavailable broker")
        redis.start()
        until(lambda: scaling.events("available"), "an available broker")
        file = jobs(tmp_path, {"key": "k", "command": "true"})
        assert run("run", file, "--broker", redis.url, "--json", cwd=tmp_path).summary["succeeded"] == 1
        assert scaling.events("failed") == []


def test_failures_make_one_line_each_and_grow_rarer(url, tmp_path, scheduler):
    (scheduler.folder / "broken").write_text("sbatch: error: invalid partition specified: nowhere")
    file = jobs(tmp_path, {"key": "k", "command": "true"})
    with (
        autoscaling(tmp_path, scheduler, "--max", "2", "--broker", url) as scaling,
        started("run", file, "--broker", url, "--json", cwd=tmp_path) as executor,
    ):
        until(lambda: scaling.events("failed"), "a failure")
        words = scaling.events("failed")[0]["words"]
        (scheduler.folder / "broken").unlink()
        assert executor.wait().summary["succeeded"] == 1
    assert words.startswith("sbatch failed with status 1: invalid partition specified: nowhere; the next attempt in ")


def test_an_allocation_that_ends_at_once_is_a_failure(url, tmp_path, scheduler):
    file = jobs(tmp_path, {"key": "k", "command": "true"})
    options = ("--max", "2", "--broker", url, "--python", "/nowhere/python")
    with (
        autoscaling(tmp_path, scheduler, *options) as scaling,
        started("run", file, "--broker", url, "--json", cwd=tmp_path),
    ):
        until(lambda: scaling.events("failed"), "a failure")
        assert "allocation 1 ended before its worker was there" in scaling.events("failed")[0]["words"]
        assert len(scheduler.calls("sbatch")) == 1


def look_once(folder: Path, scheduler: FakeScheduler, *options: str) -> Ended:
    return run("autoscale", "slurm", *QUICK, *options, cwd=folder, env=scheduler.environment)


def test_a_dry_run_shows_the_command_and_the_script_and_submits_nothing(url, tmp_path, scheduler):
    ended = look_once(tmp_path, scheduler, "--max", "9", "--min", "2", "--broker", url, "--dry-run", "--", "--time=5")
    assert ended.status == 0
    assert ended.out.startswith("would submit 2 allocations\n\nsbatch --parsable --job-name=celeriac-default ")
    assert " --time=5 <<'END'\n#!/bin/sh\nexec " in ended.out
    assert scheduler.calls("sbatch") == []
    assert not (tmp_path / "celeriac-autoscale").exists()


def test_once_acts_once_and_leaves_everything_as_it_is(url, tmp_path, scheduler):
    scheduler.set_nodes(0)
    ended = look_once(tmp_path, scheduler, "--max", "9", "--min", "2", "--broker", url, "--once")
    assert (ended.status, [*scheduler.jobs().values()]) == (0, ["PENDING", "PENDING"])
    assert ended.err.endswith("submitted 2 allocations (1, 2): the minimum\n")
    assert look_once(tmp_path, scheduler, "--max", "9", "--min", "2", "--broker", url, "--once").err == ""
    ended = look_once(tmp_path, scheduler, "--max", "1", "--broker", url, "--once", "--json")
    assert [json.loads(line)["event"] for line in ended.out.splitlines()] == ["state", "cancelled"]


def test_no_secret_is_in_an_argument_a_script_or_the_environment_of_a_job(redis: RedisServer, tmp_path, scheduler):
    redis.command("CONFIG", "SET", "requirepass", PASSWORD)
    address = redis.url.replace("redis://", f"redis://:{PASSWORD}@")
    (tmp_path / "broker.url").write_text(address)
    scheduler.set_nodes(0)
    key = "a signing key of some length"
    ended = run(
        *("autoscale", "slurm", *QUICK, "--max", "1", "--min", "1", "--once", "--broker-file", "broker.url"),
        cwd=tmp_path,
        env={**scheduler.environment, "CELERIAC_SIGNING_KEY": key, "CELERIAC_BACKEND": address},
    )
    assert ended.status == 0, ended.err
    settings = tmp_path / "celeriac-autoscale" / "default.toml"
    assert PASSWORD in settings.read_text()
    assert key in settings.read_text()
    assert settings.stat().st_mode & 0o777 == 0o600
    kept = [path for path in scheduler.folder.rglob("*") if path.is_file()]
    assert len(kept) > 3
    for path in kept:
        assert PASSWORD not in path.read_text(), path
        assert key not in path.read_text(), path


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ("--max 1 --min 2", "--min: 2 is more than --max 1; "),
        ("--max 1 --idle-exit 0.9", "--idle-exit: '0.9' is too short; "),
        ("--max 1 --idle-exit 19", "--idle-exit: 19 s is less than two looks, one every 10 s; "),
        ("--max 1 --queues a/b", "--name: 'a/b' cannot name allocations; "),
        ("--max 1", "slurm: sbatch and squeue and scancel cannot be found on the PATH; "),
    ],
)
def test_wrong_input_is_one_line(tmp_path, options, start):
    known = ("--broker", "redis://127.0.0.1:1/0")
    ended = run("autoscale", "slurm", *options.split(), *known, cwd=tmp_path, env={"PATH": "/nowhere"})
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"celeriac: {start}")
