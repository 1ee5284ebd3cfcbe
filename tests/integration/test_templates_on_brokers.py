"""Jobs of a template on workers elsewhere, which are killed, and so is the executor: on Redis, and on RabbitMQ with
PostgreSQL."""

from __future__ import annotations

import json

import pytest

from tests.integration.test_cancel import url
from tests.support.cli_runner import run, started, until
from tests.support.long import slow
from tests.support.workers import read_log, worker

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture
TEMPLATE = "echo {sample} >> log; until [ -e go ]; do sleep 0.02; done; echo {sample} >> {sample/.}.{slots}.done"
SAMPLES = ("a b.fq", "c.fq", "d'e.fq", "f.fq", "g.fq")


@pytest.fixture(params=["redis", slow("rabbitmq")])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    if request.param == "redis":
        return (request.getfixturevalue("url"),) * 2
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


def test_each_job_ends_once_though_its_worker_and_the_executor_are_killed(urls, tmp_path):
    (tmp_path / "samples.csv").write_text("sample,slots\n" + "".join(f"{sample},2\n" for sample in SAMPLES))
    servers = ("--broker", urls[0], "--backend", urls[1])
    words = ("run", "-t", TEMPLATE, "samples.csv", "--key", "{sample/.}", *servers, "--ledger=ledger.db", "--json")
    with worker(tmp_path, urls, "--concurrency", "2") as one:
        with started(*words, "-j4", cwd=tmp_path) as celeriac:
            until(lambda: len(read_log(tmp_path / "log")) >= 2, "the start of two jobs")
            celeriac.kill()
        one.kill()
    (tmp_path / "go").touch()
    with worker(tmp_path, urls, "--concurrency", "2"):
        ended = run(*words, "-j4", "--resume", cwd=tmp_path)
    assert (ended.status, ended.summary["failed"]) == (0, 0)
    done = {path.name: path.read_text() for path in tmp_path.glob("*.done")}
    assert done == {f"{sample[:-3]}.2.done": f"{sample}\n" for sample in SAMPLES}
    shown = run("show", "samples", "--ledger=ledger.db", "--json", cwd=tmp_path).out
    tasks = {task["key"]: (task["state"], task["slots"]) for task in map(json.loads, shown.splitlines())}
    assert tasks == {sample[:-3]: ("success", 2) for sample in SAMPLES}
