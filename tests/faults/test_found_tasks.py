"""Tags, conditions and the log of jobs of a run on workers elsewhere: a worker and the executor are killed."""

from __future__ import annotations

import json

import pytest

from celeriac.cli.job_log import HEADER
from tests.support.cli_runner import jobs, run, run_in_process, started, until
from tests.support.workers import GATED, read_log, worker

pytestmark = pytest.mark.fault


@pytest.fixture(params=["redis", "rabbitmq"])
def urls(request):
    """The URLs of a broker and its result backend: Redis for both, or RabbitMQ and PostgreSQL."""
    if request.param == "redis":
        url = request.getfixturevalue("redis").url
        return url, url
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


def test_a_run_is_found_and_logged_after_its_worker_and_its_executor_were_killed(urls, tmp_path):
    file = jobs(
        tmp_path,
        {"key": "a", "command": f"cd {tmp_path}; {GATED}", "tags": "big"},
        {"key": "b", "command": f"cd {tmp_path}; exit 3"},
    )
    job_log = tmp_path / "jobs.log"
    place = ("--broker", urls[0], "--backend", urls[1], "--ledger", "ledger.db", "--joblog", "jobs.log", "-q")
    with started("run", file, *place, "--tags", "nightly", cwd=tmp_path) as executor:
        with worker(tmp_path, urls, "--concurrency", "2") as first:
            until(lambda: read_log(tmp_path / "log") == ["a"], "the start of the first job", timeout=60)
            until(lambda: b"exit 3" in job_log.read_bytes(), "the line of the job that failed", timeout=60)
            first.kill()
        executor.kill()
    (tmp_path / "go").touch()
    with worker(tmp_path, urls, "--concurrency", "2"):
        assert run("run", file, *place, "--resume", cwd=tmp_path).status == 1
    shown = run_in_process("show", "--ledger", "ledger.db", "--json", "--where", "tag=big", cwd=tmp_path)
    assert [(json.loads(line)["key"], json.loads(line)["state"]) for line in shown.out.splitlines()] == [
        ("a", "success")
    ]
    listed = run_in_process("runs", "--ledger", "ledger.db", "--json", "--tag", "nightly", cwd=tmp_path)
    assert [each["run"] for each in json.loads(listed.out)] == ["jobs"]
    header, *lines = job_log.read_bytes().splitlines(keepends=True)
    assert header == HEADER
    ends = {line.split(b"\t")[8].strip().rpartition(b"; ")[2]: line.split(b"\t")[6] for line in lines}
    assert (ends[b"exit 3"], sorted(set(ends.values()))) == (b"3", [b"0", b"3"])
