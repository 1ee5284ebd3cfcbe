"""The probes of services and workers: `--listen`, and `celeriac check worker`."""

from __future__ import annotations

import json
import signal

import httpx
import pytest

from celeriac.cluster.status_parts import WorkerStatus
from celeriac.cluster.worker_check import judge
from tests.support.cli_runner import jobs, run, run_in_process, until
from tests.support.web_host import client_of, web_server


def problems(client: httpx.Client, path: str) -> dict[str, str]:
    """Return what is wrong, by check."""
    answer = client.get(path)
    found = {check["name"]: check["problem"] for check in answer.json()["checks"] if not check["ok"]}
    assert (answer.status_code == 200) is not bool(found)
    return found


def test_a_service_that_serves_its_ledger_is_healthy_and_shows_it(tmp_path):
    with web_server(tmp_path, "--ledger", "ledger.db", command="serve") as (url, celeriac), client_of(url) as client:
        until(lambda: not problems(client, "/readyz"), "its readiness")
        checks = [check["name"] for check in client.get("/healthz").json()["checks"]]
        assert checks == ["heartbeat", "ledger"]
        assert client.get("/api/v1/runs").json() == []
        metrics = client.get("/metrics")
        assert "celeriac_heartbeat" in metrics.text
        assert metrics.headers["content-type"].startswith("text/plain")
        file = jobs(tmp_path, {"key": "a", "command": "while [ ! -e go ]; do sleep 0.05; done"})
        assert run("submit", file, "--ledger", "ledger.db", cwd=tmp_path).status == 0
        until(lambda: client.get("/api/v1/runs/jobs").json()["out"] == 1, "the start of the task")
        celeriac.signal(signal.SIGTERM)
        until(lambda: problems(client, "/readyz") == {"service": "the service is stopping"}, "its end of readiness")
        assert problems(client, "/healthz") == {}
        (tmp_path / "go").touch()
        assert celeriac.wait().status == 0


def test_a_frozen_service_is_not_healthy_for_long(tmp_path):
    """The server runs in the same process, so the age of a heartbeat is tested without a frozen process."""
    from celeriac.cli.serve import heartbeat_problem

    class Frozen:
        heartbeat_age = 16.0

    assert heartbeat_problem(Frozen()) == "the last heartbeat began 16 s ago"  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_says_why_it_cannot_work(redis, tmp_path, pool):
    options = ("--broker", redis.url, "--pool", pool, "-c", "1", "--name", "w1")
    with web_server(tmp_path, *options, command="worker") as (url, celeriac), client_of(url) as client:
        until(lambda: not problems(client, "/readyz"), "its readiness")
        assert client.get("/api/v1/runs").status_code == 404
        assert "celeriac_worker" in client.get("/metrics").text
        checked = run_in_process("check", "worker", "w1", "--broker", redis.url, "--json", cwd=tmp_path)
        assert (checked.status, json.loads(checked.out)["ok"]) == (0, True)
        redis.freeze()
        try:
            until(lambda: "lease" in problems(client, "/healthz"), "the end of the renewals")
            assert "the lease was not renewed for" in problems(client, "/healthz")["lease"]
        finally:
            redis.thaw()
        until(lambda: not problems(client, "/healthz"), "its recovery")
        celeriac.signal(signal.SIGTERM)
        assert celeriac.wait().status == 0
    gone = run_in_process("check", "worker", "w1", "--broker", redis.url, cwd=tmp_path)
    assert (gone.status, gone.err) == (1, "celeriac: w1: no worker of this name has a lease\n")


def test_a_port_in_use_ends_a_worker_and_a_service_with_one_line(redis, tmp_path):
    with web_server(tmp_path, "--ledger", "ledger.db", command="serve") as (url, _):
        address = url.removeprefix("http://")
        for command in (("worker", "--broker", redis.url), ("serve", "--ledger", "other.db")):
            ended = run(*command, "--listen", address, cwd=tmp_path)
            last = ended.err.splitlines()[-1]
            assert (ended.status, "Address already in use" in last, "Traceback" in ended.err) == (2, True, False)


def test_the_check_of_a_worker_needs_a_backend_that_answers(tmp_path):
    ended = run_in_process("check", "worker", "w1", "--broker", "redis://127.0.0.1:1/0", cwd=tmp_path)
    assert (ended.status, "is unavailable" in ended.err) == (1, True)
    assert run_in_process("check", "serve", "w1", cwd=tmp_path).status == 2


# — what leases say —


def leased(name: str, age: float | None) -> WorkerStatus:
    return WorkerStatus(name, ("default",), 1, 0, heartbeat_age=age)


@pytest.mark.parametrize(
    ("name", "workers", "found", "problem"),
    [
        ("w1", [leased("w1@box", 1.0)], "w1@box", None),
        ("w1@box", [leased("w1@box", 1.0)], "w1@box", None),
        ("w1", [leased("w1@other", 1.0)], "w1@other", None),
        ("w1", [leased("w1@other", 1.0), leased("w1@box", 1.0)], "w1@box", None),
        ("w1", [leased("w1@a", 1.0), leased("w1@b", 1.0)], "w1", "it may be w1@a or w1@b: give the full name"),
        ("w1", [leased("w1@box", 60.0), leased("w1@box", 1.0)], "w1@box", None),
        ("w1", [leased("w1@box", 60.0)], "w1@box", "the last heartbeat was 60 s ago"),
        ("w1", [leased("w2@box", 1.0)], "w1", "no worker of this name has a lease"),
    ],
)
def test_the_lease_decides(name, workers, found, problem):
    result = judge(name, workers, "box")
    assert (result.name, result.problem) == (found, problem)
