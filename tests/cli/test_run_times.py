"""`not_before` and `deadline` of jobs, as a user sees them: on one machine, and on workers of both kinds of brokers."""

from __future__ import annotations

import json
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from celeriac.broker.app import app_for
from celeriac.broker.publishers import publisher_for
from celeriac.config.settings import read_settings
from celeriac.executor.interfaces import Sent
from celeriac.task.task import Task
from tests.support.cli_runner import jobs, run, run_in_process, started, until
from tests.support.workers import worker

NEVER = "2001-12-31T00:00Z"
FAR = "2099-12-31T00:00Z"


def job(key: str, command: str = "echo $CELERIAC_KEY $(date +%s.%N) >> log", **fields: Any) -> dict[str, Any]:
    return {"key": key, "command": command, **fields}


def ledger(folder: Path) -> tuple[str, str]:
    return ("--ledger", str(folder / "ledger.db"))


def ran(folder: Path) -> dict[str, float]:
    """Return the keys of the jobs that ran, and when each began."""
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return {key: float(when) for key, when in (line.split() for line in lines)}


def text_of(when: float) -> str:
    return datetime.fromtimestamp(when, tz=UTC).isoformat()


@pytest.fixture(params=["redis", "rabbitmq and postgres"])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The broker and the result backend."""
    if request.param == "redis":
        server = request.getfixturevalue("shared_redis")
        with Redis(port=server.port) as client:
            client.flushall()
        return server.url, server.url
    broker, backend = request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url
    return broker, backend


def places(urls: tuple[str, str]) -> tuple[str, ...]:
    return ("--broker", urls[0], "--backend", urls[1])


# — on one machine —


def test_jobs_start_at_their_times_and_those_that_are_too_late_never(tmp_path):
    at = time.time() + 6
    file = jobs(
        tmp_path,
        job("soon", not_before=text_of(at), priority=9),
        job("now", deadline=FAR),
        job("late", deadline=NEVER),
        job("after", needs="late"),
    )
    ended = run("run", file, "-j1", "--json", *ledger(tmp_path), cwd=tmp_path)
    assert ended.status == 1
    assert list(ran(tmp_path)) == ["now", "soon"]
    assert ran(tmp_path)["soon"] >= at
    (failure,) = ended.summary["failures"]
    assert (failure["key"], failure["reason"]) == ("late", "deadline")
    assert failure["detail"].startswith("it had not started by its deadline, 2001-12-31 ")
    assert (ended.summary["succeeded"], ended.summary["skipped"]) == (2, 1)
    shown = {line["key"]: line for line in map(json.loads, run_show(tmp_path).splitlines())}
    assert shown["soon"]["not_before"] == pytest.approx(at, abs=0.001)
    assert (shown["late"]["reason"], shown["now"]["deadline"]) == ("deadline", 4_102_358_400.0)


def run_show(folder: Path) -> str:
    return run("show", "jobs", "--json", *ledger(folder), cwd=folder).out


def test_a_table_has_times_and_an_empty_cell_none(tmp_path):
    (tmp_path / "jobs.csv").write_text(f"command,not_before,deadline\necho a >> log,,{FAR}\necho b >> log,,{NEVER}\n")
    assert run("run", "jobs.csv", "-q", cwd=tmp_path).status == 1
    assert (tmp_path / "log").read_text() == "a\n"


def test_options_give_times_to_all_jobs_also_as_delays(tmp_path):
    began = time.time()
    ended = run("run", "--not-before", "1s", "-t", "echo {} $(date +%s.%N) >> log", ":::", "a", cwd=tmp_path)
    assert ended.status == 0
    assert next(iter(ran(tmp_path).values())) >= began + 1
    late = run("run", "--deadline", NEVER, "--json", "-t", "true {}", ":::", "a", "b", cwd=tmp_path)
    assert (late.status, late.summary["failed"]) == (1, 2)


def test_a_dry_run_lists_jobs_in_the_order_of_their_times(tmp_path):
    file = jobs(tmp_path, job("c", "c", not_before="2031-01-01T00:00Z"), job("b", "b", not_before=FAR), job("a", "a"))
    lines = run_in_process("run", "--dry-run", file, "--deadline", "2100-01-01T00:00Z", cwd=tmp_path).out.splitlines()
    assert [line.split()[2] for line in lines] == ["a", "c", "b"]
    assert "  (not before 2031-01-01 " in lines[1]
    assert "  (deadline 2100-01-01 " in lines[0]
    as_json = run_in_process("run", "--dry-run", file, "--json", cwd=tmp_path).out.splitlines()
    assert json.loads(as_json[1])["not_before"] == 1_924_992_000.0


BAD = [
    ({"not_before": "tomorrow"}, [], 'jobs.jsonl:1: not_before: "tomorrow" is not a time; write for example 2030-'),
    ({"deadline": 30}, [], "jobs.jsonl:1: deadline: 30 is not a time; write"),
    ({"not_before": FAR, "deadline": NEVER}, [], "jobs.jsonl:1: deadline: 2001-12-31 "),
    ({"at": FAR}, [], 'jobs.jsonl:1: at: it is not a field of a job; did you mean "not_before"?'),
    ({}, ["--not-before", "10 minutes"], "celeriac: not_before: '10 minutes' is not a time; write"),
    ({}, ["--deadline", "5m", "--not-before", "10m"], "celeriac: deadline: "),
]


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize(("fields", "options", "line"), BAD)
def test_bad_times_are_refused_before_anything_runs(tmp_path, command, fields, options, line):
    file = jobs(tmp_path, job("a", "touch ran", **fields))
    ended = run_in_process(command, file.name, *ledger(tmp_path), *options, cwd=tmp_path)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(line)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "ledger.db").exists()


def test_a_killed_run_keeps_the_times_of_its_jobs_also_those_of_options(tmp_path):
    at = time.time() + 8
    file = jobs(tmp_path, job("a"), job("b", not_before=text_of(at)), job("c", deadline=text_of(at)), job("d"))
    arguments = ("run", file, "-j1", *ledger(tmp_path), "--not-before", "0s")
    waits = job("a")["command"] + "; test -e go || exec sleep 60"
    jobs(tmp_path, job("a", waits), job("b", not_before=text_of(at)), job("c", deadline=text_of(at)), job("d"))
    with started(*arguments, cwd=tmp_path) as celeriac:
        until(lambda: "a" in ran(tmp_path), "the start of the first job")
        celeriac.kill()
    (tmp_path / "go").touch()
    until(lambda: time.time() > at, "the deadline of the third job")
    ended = run("run", "--resume", file, "-j1", *ledger(tmp_path), "--json", cwd=tmp_path)
    assert (ended.status, ended.summary["failed"] + ended.summary["had_failed"]) == (1, 1)
    assert ran(tmp_path).keys() == {"a", "b", "d"}
    assert ran(tmp_path)["b"] >= at


def test_a_large_file_whose_jobs_are_not_due_lets_the_others_run(tmp_path):
    later = "".join(f'{{"command": "echo late >> log", "not_before": "{FAR}", "priority": 5}}\n' for _ in range(3_000))
    (tmp_path / "jobs.jsonl").write_text(later + '{"key": "now", "command": "touch ran"}\n')
    with started("run", "jobs.jsonl", *ledger(tmp_path), cwd=tmp_path) as celeriac:
        until((tmp_path / "ran").exists, "the job that is due")
        celeriac.kill()
    assert ran(tmp_path) == {}


# — on workers —


@pytest.mark.celery
def test_workers_start_jobs_at_their_times_and_an_executor_that_was_killed_is_resumed(urls, tmp_path):
    at = time.time() + 10
    later = job("later", cwd=str(tmp_path), not_before=text_of(at))
    late = job("late", cwd=str(tmp_path), deadline=text_of(at), needs="wait")
    waits = job("wait", "touch begun; while [ ! -e go ]; do sleep 0.05; done", cwd=str(tmp_path))
    file = jobs(tmp_path, waits, later, late)
    arguments: tuple[str | Path, ...] = ("run", file, *ledger(tmp_path), *places(urls))
    with worker(tmp_path, urls, "--concurrency", "2"):
        with started(*arguments, cwd=tmp_path) as celeriac:
            until((tmp_path / "begun").exists, "the start of the first job")
            celeriac.kill()
        until(lambda: time.time() > at, "the deadline")
        (tmp_path / "go").touch()
        ended = run(*arguments, "--resume", "--json", cwd=tmp_path)
    assert (ended.status, ended.summary["failed"] + ended.summary["had_failed"]) == (1, 1)
    states = {line["key"]: line for line in map(json.loads, run_show(tmp_path).splitlines())}
    assert (states["late"]["state"], states["late"]["reason"]) == ("failed", "deadline")
    assert ran(tmp_path).keys() == {"later"}
    assert ran(tmp_path)["later"] >= at


@pytest.mark.celery
def test_a_message_that_waits_at_the_broker_beyond_its_deadline_never_runs(urls, tmp_path):
    """No executor is there any more to revoke it when a worker comes."""
    settings = read_settings({"broker": urls[0], "backend": urls[1]}, environment={})
    command = "echo $CELERIAC_KEY 0 >> log"
    with closing(app_for(settings.connection)) as app:
        late = Task(key="late", command=command, cwd=str(tmp_path), deadline=time.time() - 1)
        in_time = Task(
            key="in time",
            command=command.replace("$CELERIAC_KEY", "b"),
            cwd=str(tmp_path),
            deadline=time.time() + 3_600,
        )
        with closing(publisher_for(app)) as publisher:
            assert all(isinstance(receipt, Sent) for receipt in publisher.publish([late, in_time], timeout=20))
        with worker(tmp_path, urls, "--concurrency", "1"):
            until(lambda: "b" in ran(tmp_path), "the command behind it")
            until(lambda: app.backend.get_state(late.message_id) == "FAILURE", "its result")
    assert ran(tmp_path).keys() == {"b"}
