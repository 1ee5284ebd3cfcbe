"""`show --where` and `--slowest`, `retry --where`, and the same over REST."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.support.cli_runner import jobs, run, run_in_process, started, until
from tests.support.web_host import client_of, web_server

LEDGER = ("--ledger", "ledger.db")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder whose ledger has one run."""
    folder = tmp_path_factory.mktemp("where")
    file = jobs(
        folder,
        {"key": "quick", "command": "true", "tags": "big"},
        {"key": "slow", "command": "sleep 0.5", "queue": "gpu"},
        {"key": "bad", "command": "test -e go || exit 3", "queue": "gpu", "tags": "big,odd"},
        {"key": "worse", "command": "exit 4"},
    )
    assert run("run", file, *LEDGER, "-q", cwd=folder).status == 1
    return folder


def shown(folder, *options):
    ended = run_in_process("show", *LEDGER, "--json", *options, cwd=folder)
    assert ended.status == 0, ended.err
    return [json.loads(line)["key"] for line in ended.out.splitlines()]


def test_tasks_are_shown_that_meet_a_condition(made):
    assert shown(made, "--where", "queue=gpu") == ["slow", "bad"]
    assert shown(made, "--where", "tag=big and not state=success") == ["bad"]
    assert shown(made, "--failed", "--where", "exit_code>3") == ["worse"]
    assert shown(made, "--where", "took>=500ms", "jobs") == ["slow"]
    assert shown(made, "--where", "attempt=1", "--limit", "3") == ["quick", "slow", "bad"]
    assert shown(made, "--where", "took>1h") == []
    assert "bad " in run_in_process("show", *LEDGER, "--where", "tag=odd", cwd=made).out


def test_the_slowest_tasks_are_shown(made):
    assert shown(made, "--slowest", "1") == ["slow"]
    assert shown(made, "--slowest", "jobs")[0] == "slow"
    assert len(shown(made, "jobs", "--slowest")) == 4
    assert shown(made, "--slowest=1", "--where", "exit_code=4") == ["worse"]


def test_what_runs_now_counts_with_its_time_so_far(tmp_path):
    (tmp_path / "jobs.txt").write_text("exec sleep 60\ntrue\n")
    with started("run", "jobs.txt", *LEDGER, cwd=tmp_path) as celeriac:
        timed = ("show", *LEDGER, "--json", "--where", "took>=0 and (key=1 or state=success)")
        until(lambda: run_in_process(*timed, cwd=tmp_path).out.count('"command"') == 2, "both tasks", timeout=60)
        assert shown(tmp_path, "--slowest", "1") == ["1"]
        celeriac.kill()
    assert shown(tmp_path, "--slowest", "2") == ["2"]


def test_matching_tasks_are_retried(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (made / "go").touch()  # where its commands run
    ended = run("retry", *LEDGER, "--where", "tag=big", "--local", "--json", cwd=tmp_path)
    assert (ended.status, ended.summary["tasks"], ended.summary["succeeded"]) == (0, 1, 1)
    assert shown(tmp_path, "--failed") == ["worse"]


def test_rest_takes_conditions(made):
    with web_server(made, *LEDGER) as (url, _), client_of(url) as client:
        answer = client.get("/api/v1/runs/jobs/tasks", params={"where": "queue=gpu and took>400ms"})
        assert [task["key"] for task in answer.json()["tasks"]] == ["slow"]
        bad = client.get("/api/v1/runs/jobs/tasks", params={"where": "took>x"})
        problem = "where: at character 6, 'x': it is not a duration; write for example 60, 90s, 5m or 1h30m"
        assert (bad.status_code, bad.json()["error"]) == (422, problem)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("show", "--where", "queu=1"), "celeriac: --where: at character 1, 'queu': it is not a field; did you mean"),
        (("show", "--where", ""), "celeriac: --where: it is empty"),
        (("show", "--slowest", "0"), "--slowest"),
        (("show", "--slowest", "3", "--limit", "3"), "give either --slowest N or --limit N"),
        (("retry", "--where", "took>"), "celeriac: --where: at the end: a value after took> is missing; "),
        (("retry", "--where", "lost=0", "--key", "bad"), "give either --where or --key"),
    ],
)
def test_bad_conditions_are_one_line(made, arguments, line):
    ended = run_in_process(*arguments, *LEDGER, cwd=made)
    assert ended.status == 2
    assert line in ended.err
    assert "Traceback" not in ended.err
