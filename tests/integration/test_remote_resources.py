"""`cpus`, `memory` and `gpus` of jobs that workers elsewhere run: on Redis, and on RabbitMQ with PostgreSQL."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.test_cancel import url
from tests.support.cli_runner import jobs, run, started, until
from tests.support.long import slow
from tests.support.workers import read_log, worker

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture
SHOW = "echo $CELERIAC_KEY >> log; echo $PPID $CELERIAC_CPUS $CELERIAC_GPUS +$CUDA_VISIBLE_DEVICES >> marks; sleep 0.1"
SHOW += "; echo $PPID $CELERIAC_CPUS $CELERIAC_GPUS -$CUDA_VISIBLE_DEVICES >> marks"


@pytest.fixture(params=["redis", slow("rabbitmq")])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    if request.param == "redis":
        return (request.getfixturevalue("url"),) * 2
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


def most_in_use(marks: Path) -> list[float]:
    """Return the most CPUs in use at once at each worker, sorted. No GPU is used by two jobs at once."""
    cpus: Counter[str] = Counter()
    most: Counter[str] = Counter()
    gpus: set[str] = set()
    for line in marks.read_text().splitlines():
        supervisor, number, *_, change = line.split()
        named = set(change[1:].split(",")) - {""}
        if change[0] == "+":
            assert not named & gpus, f"two jobs use {named & gpus}"
            gpus |= named
            cpus[supervisor] += float(number)  # type: ignore[assignment]
        else:
            gpus -= named
            cpus[supervisor] -= float(number)  # type: ignore[assignment]
        most[supervisor] = max(most[supervisor], cpus[supervisor])
    return sorted(most.values())


def test_no_worker_runs_more_than_it_has(urls, tmp_path):
    """Share out three CPUs and two GPUs of one worker, and two CPUs of another."""
    needs: list[dict[str, float]] = [
        {"cpus": 2},
        {"cpus": 0.5},
        {"cpus": 1, "gpus": 1},
        {"cpus": 3, "gpus": 2},
        {"cpus": 1, "gpus": 2},
    ] * 3
    file = jobs(tmp_path, *({"key": str(key), "command": SHOW, **each} for key, each in enumerate(needs)))
    servers = ("--broker", urls[0], "--backend", urls[1])
    three, two = ("--cpus", "3", "--gpus", "2", "-c", "4"), ("--cpus", "2", "--gpus", "0", "-c", "4")
    with worker(tmp_path, urls, "--name=one", *three), worker(tmp_path, urls, "--name=two", *two):
        ended = run("run", file, *servers, "--ledger=none", "--json", cwd=tmp_path)
    assert (ended.status, ended.summary["failed"]) == (0, 0)
    assert sorted(read_log(tmp_path / "log"), key=int) == [str(key) for key in range(len(needs))]
    assert [most <= there_is for most, there_is in zip(most_in_use(tmp_path / "marks"), (2, 3), strict=True)]


def test_jobs_start_once_though_their_worker_and_the_executor_are_killed(urls, tmp_path):
    wait = "echo $CELERIAC_KEY >> log; until [ -e go ]; do sleep 0.02; done; echo $CELERIAC_KEY >> done"
    file = jobs(tmp_path, *({"key": key, "command": wait, "cpus": 1, "gpus": 1} for key in "abcd"))
    words = ("run", file, "--broker", urls[0], "--backend", urls[1], "--ledger=ledger.db", "--json")
    has = ("--cpus", "4", "--gpus", "2", "-c", "4")
    with worker(tmp_path, urls, *has) as one:
        with started(*words, cwd=tmp_path) as celeriac:
            until(lambda: len(read_log(tmp_path / "log")) == 2, "the start of two jobs")
            celeriac.kill()
        one.kill()
    assert sorted(read_log(tmp_path / "log")) == ["a", "b"], "there are two GPUs"
    (tmp_path / "go").touch()
    with worker(tmp_path, urls, *has):
        ended = run(*words, "--resume", cwd=tmp_path)
    assert (ended.status, ended.summary["failed"]) == (0, 0)
    assert Counter(read_log(tmp_path / "done")) == Counter("abcd")
    shown = run("show", "jobs", "--ledger=ledger.db", "--json", cwd=tmp_path).out
    assert {(task["cpus"], task["gpus"]) for task in map(json.loads, shown.splitlines())} == {(1, 1)}


def test_a_job_waits_for_a_worker_that_has_enough(urls, tmp_path):
    file = jobs(tmp_path, {"key": "large", "command": "true", "memory": "8G"}, {"key": "small", "command": "true"})
    words = ("run", file, "--broker", urls[0], "--backend", urls[1], "--ledger=none", "--json")
    with worker(tmp_path, urls, "--name=small", "--memory", "1G"), started(*words, cwd=tmp_path) as celeriac:
        celeriac.wait_for_stderr("no live worker of queue 'default' has 8 GiB of memory: task 'large' waits")
        with worker(tmp_path, urls, "--name=large", "--memory", "16G"):
            assert celeriac.wait().status == 0


def test_a_pool_of_processes_hands_back_a_job_with_needs(url, tmp_path):
    """Let the worker with threads run it, whichever gets it first."""
    file = jobs(tmp_path, *({"command": "true", "cpus": 1} for _ in range(6)), {"command": "true"})
    urls, words = (url, url), ("run", file, "--broker", url, "--ledger=none", "--json")
    processes = ("--name=processes", "--pool=prefork", "-c", "1")
    with worker(tmp_path, urls, *processes), worker(tmp_path, urls, "--name=threads", "--cpus", "2"):
        ended = run(*words, cwd=tmp_path)
    assert (ended.status, ended.summary["succeeded"]) == (0, 7)


@pytest.mark.parametrize("option", [["--cpus", "2"], ["--memory", "2G"], ["--gpus", "1"]])
def test_a_pool_of_processes_shares_no_resources(tmp_path, option):
    place = ("--broker", "redis://127.0.0.1:1/0", "--pool", "prefork")
    ended = run("worker", *place, *option, cwd=tmp_path)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"celeriac: {option[0]}: processes of a pool cannot share it out")
