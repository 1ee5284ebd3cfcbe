"""`celeriac pause --worker` and `resume --worker`, on Redis and on RabbitMQ with PostgreSQL."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.integration.test_cancel import job, running, url
from tests.integration.test_cluster_run import read_transitions
from tests.support.cli_runner import Ended, jobs, run, run_in_process, started, until
from tests.support.workers import read_log, worker

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture


@pytest.fixture(params=["redis", "rabbitmq"])
def urls(request) -> tuple[str, str]:
    if request.param == "redis":
        return (request.getfixturevalue("url"),) * 2
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


@pytest.fixture
def servers(urls) -> tuple[str, ...]:
    return "--broker", urls[0], "--backend", urls[1]


def workers_of(servers: tuple[str, ...], folder) -> dict[str, Any]:
    """Return the workers by name, without their host."""
    status = json.loads(run("status", *servers, "--json", cwd=folder).out)
    return {each["name"].partition("@")[0]: each for each in status["workers"]}


def test_a_paused_worker_starts_nothing_until_it_is_resumed(urls, servers, tmp_path):
    def change(command: str) -> Ended:
        return run(command, "--worker", "w1", *servers, cwd=tmp_path)

    first = jobs(tmp_path, job("a", cwd=str(tmp_path)), job("b", cwd=str(tmp_path)))
    (tmp_path / "more.jsonl").write_text(json.dumps(job("c", cwd=str(tmp_path))) + "\n")
    with (
        worker(tmp_path, urls, "--concurrency", "2", "--name", "w1"),
        running(first, *servers) as celeriac,
    ):
        until(lambda: sorted(read_log(tmp_path / "log")) == ["a", "b"], "both tasks")
        paused, again = change("pause"), change("pause")
        assert (paused.status, paused.err, paused.out.startswith("w1@")) == (0, "", True)
        assert paused.out.endswith(": takes nothing more until it is resumed; it runs 2 tasks\n")
        assert (again.status, again.out, again.err.endswith(": already paused\n")) == (1, "", True)
        with started("run", tmp_path / "more.jsonl", *servers, "--json", cwd=tmp_path) as more:
            (tmp_path / "go-a").touch()
            until(lambda: ("a", "success") in read_transitions(tmp_path), "a free slot")
            until(lambda: workers_of(servers, tmp_path)["w1"]["running"] == 1, "the next heartbeat")
            shown = workers_of(servers, tmp_path)["w1"]
            assert (shown["paused"], shown["queues"]) == (True, [])
            assert shown["paused_by"].startswith("celeriac pause (")
            assert "c" not in read_log(tmp_path / "log")
            with worker(tmp_path, urls, "--concurrency", "1", "--name", "w2"):
                until(lambda: "c" in read_log(tmp_path / "log"), "the start on the other worker")
                (tmp_path / "go").touch()
                assert (more.wait().summary["succeeded"], celeriac.wait().summary["succeeded"]) == (1, 2)
        resumed = json.loads(run("resume", "--worker", "w1", *servers, "--json", cwd=tmp_path).out)["workers"]
        assert [(each["changed"], each["paused"], each["running"]) for each in resumed] == [(True, False, 0)]
        last = run("run", first, *servers, "--name", "last", "--json", cwd=tmp_path)
        assert last.summary["succeeded"] == 2
    assert sorted(read_log(tmp_path / "log")) == ["a", "a", "b", "b", "c"]


def test_a_worker_that_starts_again_is_not_paused_and_names_are_checked(url, tmp_path):
    servers = ("--broker", url)
    with worker(tmp_path, (url, url), "--name", "w1@here") as one:
        unknown = run("pause", "--worker", "w2", *servers, cwd=tmp_path)
        assert (unknown.status, unknown.out) == (1, "")
        assert unknown.err == "celeriac: no worker 'w2' answers; workers that answer: w1@here\n"
        unpaused = run("resume", "--worker", "w1", *servers, cwd=tmp_path)
        assert (unpaused.status, unpaused.err) == (1, "celeriac: w1@here: not paused\n")
        assert run("pause", "--worker", "w1", *servers, cwd=tmp_path).status == 0
        doctor = json.loads(run("doctor", *servers, "--json", cwd=tmp_path).out)["findings"]
        (found,) = (each for each in doctor if each["check"] == "paused-workers")
        assert (found["level"], found["remedy"]) == ("warning", "celeriac resume --worker w1@here")
        one.signal(signal.SIGTERM)
        assert one.wait().status == 0
    with worker(tmp_path, (url, url), "--name", "w1@here"):
        until(lambda: [*workers_of(servers, tmp_path)] == ["w1"], "the lease")
        assert not workers_of(servers, tmp_path)["w1"]["paused"]


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_worker_goes_alone(command, tmp_path):
    for words in (["R"], ["--queue", "q"], ["--local"], ["--ledger", "l"]):
        ended = run_in_process(command, "--worker", "w1", *words, cwd=tmp_path)
        assert (ended.status, ended.out) == (2, "")
        assert "--worker goes without RUN, --queue, --ledger and --local" in ended.err


def test_a_worker_needs_a_broker(tmp_path):
    ended = run_in_process("pause", "--worker", "w1", cwd=tmp_path)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "broker" in ended.err
