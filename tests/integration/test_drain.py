"""`celeriac drain`: workers that finish what they run, and stop."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from celeriac.broker.app import make_app
from tests.integration.test_cancel import job, running, url
from tests.integration.test_cluster_run import read_transitions
from tests.support.cli_runner import jobs, run, until
from tests.support.workers import read_log, worker

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture


def test_draining_worker_finishes_its_task_takes_no_other_and_stops(url, tmp_path):
    here = {"cwd": str(tmp_path)}
    file = jobs(tmp_path, job("runs", **here), job("next", "echo next >> log", **here))
    with running(file, "--broker", url) as celeriac:
        with worker(tmp_path, (url, url), "--concurrency", "1", "--name", "w1") as one:
            until(
                lambda: {("runs", "running"), ("next", "queued")} <= {*read_transitions(tmp_path)},
                "one running and one queued task",
            )
            told = run("drain", "w1", "--broker", url, cwd=tmp_path)
            (tmp_path / "go").touch()
            assert one.wait().status == 0
        assert read_log(tmp_path / "log") == ["runs"]
        with worker(tmp_path, (url, url), "--concurrency", "1", "--name", "w2"):
            assert celeriac.wait().summary["succeeded"] == 2
            gone = run("drain", "w2", "--broker", url, "--wait", "30", "--json", cwd=tmp_path)
    assert told.status == 0
    assert told.out.startswith("w1@")
    assert told.out.endswith(" takes nothing more, and stops when its running tasks have ended\n")
    assert gone.status == 0
    (said,) = json.loads(gone.out)["workers"]
    assert said == {"worker": told.out.split()[0].replace("w1@", "w2@"), "gone": True, "running": None}


def test_worker_that_does_not_stop_in_time_is_named_with_its_tasks(url, tmp_path):
    with (
        running(jobs(tmp_path, job("runs", cwd=str(tmp_path))), "--broker", url) as celeriac,
        worker(tmp_path, (url, url), "--concurrency", "1", "--name", "w1"),
    ):
        until(lambda: ("runs", "running") in read_transitions(tmp_path), "the start of the task")
        ended = run("drain", "w1", "--broker", url, "--wait", "3", cwd=tmp_path)
        (tmp_path / "go").touch()
        celeriac.wait()
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("celeriac: w1@")
    assert ended.err.endswith(" still runs 1 task after 3.00 s\n")


def test_name_must_be_that_of_one_live_worker(url, tmp_path):
    def drain(*names: str) -> tuple[int, str, str]:
        ended = run("drain", *names, "--broker", url, cwd=tmp_path)
        return ended.status, ended.out, ended.err

    assert drain("w1") == (1, "", "celeriac: no worker 'w1' answers; workers that answer: none\n")
    app = make_app(broker_url=url, result_backend=url)
    with ExitStack() as stack:
        for name in ("w1@here", "w1@there", "w2@here"):
            stack.enter_context(worker(tmp_path, (url, url), "--concurrency", "1", "--name", name))
        until(lambda: len(app.control.ping(timeout=1.0)) == 3, "three workers")
        ambiguous = "celeriac: 'w1' may be w1@here or w1@there: give the full name\n"
        until(lambda: drain("w1", "w2") == (1, "", ambiguous), "the answers of two workers of one name")
        unknown = "celeriac: no worker 'w3' answers; workers that answer: w1@here, w1@there, w2@here\n"
        until(lambda: drain("w3") == (1, "", unknown), "the answers of all workers")
        status, out, err = drain("w1@there", "w2")
        assert (status, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()] == ["w1@there", "w2@here"]
        until(lambda: app.control.ping(timeout=1.0) == [{"w1@here": {"ok": "pong"}}], "the end of the two workers")
    app.close()
