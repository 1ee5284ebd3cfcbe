"""`celeriac worker --min-free-memory`: a worker whose machine is busy starts nothing, and says so."""

from __future__ import annotations

import json
import signal

import pytest

from tests.integration.test_cancel import job, running
from tests.support.cli_runner import jobs, run, until
from tests.support.workers import read_log, worker

pytestmark = pytest.mark.celery

END = {"terminate": signal.SIGTERM, "kill": signal.SIGKILL}
NEVER = ("--min-free-memory", "900T", "--concurrency", "2")


@pytest.fixture
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The broker and the result backend."""
    if request.param == "redis":
        server = request.getfixturevalue("shared_redis")
        return server.url, server.url
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


@pytest.mark.parametrize(
    ("urls", "end"),
    [
        ("redis", "terminate"),
        ("rabbitmq and postgres", "kill"),
        pytest.param("redis", "kill", marks=pytest.mark.slow),
        pytest.param("rabbitmq and postgres", "terminate", marks=pytest.mark.slow),
    ],
    indirect=["urls"],
)
def test_a_busy_worker_holds_its_tasks_until_another_one_gets_them(urls, tmp_path, end):
    servers = ("--broker", urls[0], "--backend", urls[1])
    here = {"cwd": str(tmp_path), "command": "echo $CELERIAC_KEY >> log"}
    file = jobs(tmp_path, job("a", **here), job("b", **here), job("c", **here), job("cancelled", **here, priority=9))
    with running(file, *servers) as celeriac:
        with worker(tmp_path, urls, *NEVER, "--name", end) as busy:

            def explained() -> str:
                return run("explain", "cancelled", *servers, cwd=tmp_path).out

            until(lambda: "waits: free memory" in explained(), "the reason why the task does not start")
            workers = json.loads(run("status", *servers, "--json", cwd=tmp_path).out)["workers"]
            (shown,) = (each for each in workers if each["name"].startswith(f"{end}@"))
            in_words = run("status", *servers, cwd=tmp_path).out
            cancelled = run("cancel", "cancelled", *servers, cwd=tmp_path)
            busy.signal(END[end])
            busy.wait()
        assert (shown["waits"].endswith(" is below 900 TiB"), shown["running"], shown["tasks"]) == (True, 0, [])
        assert "waits: free memory" in " ".join(in_words.split())
        assert cancelled.status == 0
        with worker(tmp_path, urls, "--max-load", "90000%", "--min-free-memory", "1K"):
            summary = celeriac.wait().summary
    assert (summary["succeeded"], summary["never_ran"]) == (3, 1)
    assert sorted(read_log(tmp_path / "log")) == ["a", "b", "c"]
