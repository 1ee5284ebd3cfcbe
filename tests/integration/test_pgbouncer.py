"""Result backend, claims and ledger behind a PgBouncer that gives each transaction another connection."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.support.cli_runner import jobs, run, started
from tests.support.load import workers
from tests.support.servers import PgBouncer
from tests.support.workers import read_log

pytestmark = pytest.mark.celery

TASKS = 100


def check_logs(*texts: str) -> None:
    """Fail if a log names an error of the database."""
    for text in texts:
        assert not re.search("prepared statement|_pg3_|unavailable|Traceback|protocol", text, re.I), text


@pytest.fixture(scope="module")
def bouncer(postgres) -> Iterator[PgBouncer]:
    with closing(PgBouncer(postgres)) as bouncer:
        yield bouncer


def test_tasks_run_once_and_no_log_has_an_error(shared_redis, bouncer, tmp_path):
    urls, ledger = ("--broker", shared_redis.url, "--backend", bouncer.url), ("--ledger", bouncer.ledger_url)
    keys = [f"k{n}" for n in range(TASKS)]
    file = jobs(
        tmp_path,
        *({"key": key, "command": "echo $CELERIAC_KEY >> log", "cwd": str(tmp_path)} for key in keys),
        {"key": "fails", "command": "test -e allowed", "cwd": str(tmp_path)},
    )
    with workers(tmp_path, 2, *urls, "-c", "4") as running:
        ended = run("run", file, *urls, *ledger, "--json", cwd=tmp_path)
        name = ended.summary["run"]
        shown = run("show", name, *ledger, "--json", cwd=tmp_path)
        (tmp_path / "allowed").touch()
        retried = run("retry", name, *urls, *ledger, "--json", cwd=tmp_path)
        for worker in running:
            worker.process.terminate()
        assert [worker.process.wait(60) for worker in running] == [0, 0]
    assert (ended.status, ended.summary["succeeded"], ended.summary["failed"]) == (1, TASKS, 1)
    assert Counter(read_log(tmp_path / "log")) == Counter(keys)
    assert (shown.status, retried.status) == (0, 0), (shown.err, retried.err)
    check_logs(*(log.read_text() for log in tmp_path.glob("*.log")), ended.err, shown.err, retried.err)


def test_a_service_takes_submitted_runs_behind_it(shared_redis, bouncer, tmp_path):
    urls = ("--broker", shared_redis.url, "--backend", bouncer.url)
    ledger = ("--ledger", bouncer.ledger_url)
    file = jobs(tmp_path, *({"key": f"s{n}", "command": "true", "cwd": str(tmp_path)} for n in range(60)))
    logs = {name: (tmp_path / f"{name}.log") for name in ("worker", "serve")}
    with ExitStack() as stack:
        files = {name: stack.enter_context(log.open("wb")) for name, log in logs.items()}
        stack.enter_context(started("worker", *urls, "-c", "4", cwd=tmp_path, log=files["worker"]))
        stack.enter_context(started("serve", *urls, *ledger, cwd=tmp_path, log=files["serve"]))
        submitted = run("submit", file, *ledger, "--name", "behind", "--json", cwd=tmp_path)
        assert submitted.status == 0, submitted.err
        shown = run("show", "behind", "--follow", *ledger, cwd=tmp_path)
    assert shown.status == 0, shown.err
    check_logs(*(log.read_text() for log in logs.values()), shown.err)
