"""The commands that use a ledger: runs, show, logs, explain --run, retry, prune."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import case, select, update

from celeriac.ledger.codec import task_row
from celeriac.ledger.many_rows import insert_rows
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schema import RUNS, TASKS
from celeriac.task.task import Task
from tests.support.cli_runner import Celeriac, Ended, jobs, run, run_in_process, started, until
from tests.support.servers import PostgresServer, RedisServer
from tests.support.workers import worker

LEDGER = "ledger.db"
UNTIL_GO = "until [ -e go ]; do sleep 0.02; done"


def celeriac(folder: Path, *args: str | Path, env: dict[str, str] | None = None) -> Ended:
    return run(*args, "--ledger", LEDGER, cwd=folder, env=env)


def run_list(folder: Path, *args: str) -> list[dict[str, Any]]:
    ended = run_in_process("runs", "--json", *args, "--ledger", LEDGER, cwd=folder)
    assert ended.status == 0, ended.err
    runs: list[dict[str, Any]] = json.loads(ended.out)
    return runs


def shown(folder: Path, *args: str) -> list[dict[str, Any]]:
    ended = run_in_process("show", "--json", *args, "--ledger", LEDGER, cwd=folder)
    assert ended.status == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


def states(folder: Path, *args: str) -> dict[str, str]:
    return {task["key"]: task["state"] for task in shown(folder, *args)}


def mixed_jobs(folder: Path, name: str = "jobs.jsonl") -> Path:
    return jobs(
        folder,
        {"key": "good", "command": "echo good; echo aside >&2"},
        {"key": "bad", "command": "echo bad; echo why >&2; exit 3", "retries": 1, "retry_delay": 0},
        {"key": "shot", "command": "kill -9 $$", "env": {"TOKEN": {"secret": "correct-horse"}, "PLAIN": "seen"}},
        name=name,
    )


@pytest.fixture
def waits_for_go(tmp_path: Path) -> Iterator[Callable[..., Celeriac]]:
    """Start a run whose only command waits for the file `go`. The command has started."""
    file = jobs(tmp_path, {"key": "slow", "command": f"echo begun; touch begun; {UNTIL_GO}; echo done; echo aside >&2"})
    with ExitStack() as stack:

        def start(*args: str) -> Celeriac:
            runner = stack.enter_context(started("run", file, *args, "--ledger", LEDGER, cwd=tmp_path))
            until((tmp_path / "begun").exists, "the start of the command")
            return runner

        yield start


def killed(folder: Path, *args: str) -> None:
    """Leave a run behind whose executor was killed with -9 while its first task ran and its second task waited."""
    file = jobs(
        folder,
        {"key": "ran", "command": "echo begun; [ -e go ] && exit 0; touch begun; sleep 60", "priority": 1},
        {"key": "waited", "command": "echo ran"},
    )
    with started("run", file, "-j1", *args, "--ledger", LEDGER, cwd=folder) as runner:
        until((folder / "begun").exists, "the start of the command")
        until(lambda: states(folder)["ran"] == "running", "its state in the ledger")
        runner.kill()


def one_line_and_status_2(ended: Ended, *words: str) -> None:
    assert ended.status == 2
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1
    for word in words:
        assert word in ended.err


# — runs —


def test_runs_lists_the_latest_run_first_with_its_counts(tmp_path):
    celeriac(tmp_path, "run", mixed_jobs(tmp_path))
    celeriac(tmp_path, "run", jobs(tmp_path, {"command": "true"}, name="more.jsonl"), "--name", "second")
    second, first = run_list(tmp_path)
    assert (first["run"], first["file"], first["state"]) == ("jobs", str(tmp_path / "jobs.jsonl"), "ended")
    assert (first["tasks"], first["succeeded"], first["failed"]) == (3, 1, 2)
    assert (second["run"], second["tasks"], second["succeeded"], second["owner"]) == ("second", 1, 1, None)
    table = celeriac(tmp_path, "runs", "--limit", "1")
    assert "second" in table.out
    assert "jobs" not in table.out.replace("jobs.jsonl", "")
    assert "1 more" in table.err


def test_a_running_run_has_an_owner_and_a_killed_one_is_interrupted(tmp_path, waits_for_go):
    runner = waits_for_go()
    until(lambda: run_list(tmp_path)[0]["out"] == 1, "the task in the ledger")
    [run_now] = run_list(tmp_path)
    assert (run_now["state"], run_now["ended"]) == ("running", None)
    assert f"process {runner.process.pid} on" in run_now["owner"]
    runner.signal(signal.SIGKILL)
    runner.wait()
    [left] = run_list(tmp_path)
    assert (left["state"], left["owner"], left["out"]) == ("interrupted", None, 1)
    assert "interrupted" in celeriac(tmp_path, "runs").out
    until(lambda: not runner.alive(), "the end of its command")


def test_runs_counts_tasks_that_never_ran_apart_from_revoked_ones(tmp_path):
    file = jobs(tmp_path, {"key": "bad", "command": "false", "priority": 1}, {"key": "rest", "command": "true"})
    celeriac(tmp_path, "run", file, "-j1", "--fail-fast")
    [found] = run_list(tmp_path)
    assert (found["failed"], found["never_ran"], found["revoked"], found["tasks"]) == (1, 1, 0, 2)


@pytest.mark.parametrize("command", ["runs", "show", "logs", "explain", "retry", "prune"])
def test_a_missing_ledger_is_one_line_and_is_not_created(tmp_path, command):
    rest = {"logs": ["a", "b"], "explain": ["b", "--run", "a"], "retry": ["a"], "prune": ["--keep", "1"]}
    one_line_and_status_2(celeriac(tmp_path, command, *rest.get(command, [])), "there is no", LEDGER)
    assert not (tmp_path / LEDGER).exists()


def test_a_ledger_that_cannot_be_used_is_one_line(tmp_path):
    ledger = tmp_path / LEDGER
    ledger.write_bytes(b"no database, but long enough to be one " * 100)
    one_line_and_status_2(celeriac(tmp_path, "runs"), "damaged")
    ledger.write_bytes(b"")
    one_line_and_status_2(celeriac(tmp_path, "show"), "no ledger yet")
    ledger.unlink()
    celeriac(tmp_path, "run", jobs(tmp_path, {"command": "true"}))
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE celeriac_ledger SET version = 99")
    one_line_and_status_2(celeriac(tmp_path, "runs"), "version 99")
    data = ledger.read_bytes()
    ledger.write_bytes(data[: len(data) // 2])
    one_line_and_status_2(celeriac(tmp_path, "runs"), "damaged")
    one_line_and_status_2(run("runs", "--ledger", "none", cwd=tmp_path), "this command needs one")
    one_line_and_status_2(run("runs", "--ledger", tmp_path, cwd=tmp_path), str(tmp_path))


def reading_only(folder: Path, *args: str) -> Ended:
    """Run a command without the permission to write in the folder. For root, a capability is dropped."""
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if drop and shutil.which(drop[0]) is None:
        pytest.skip("setpriv is not installed, and root can write everywhere")
    return run(*args, "--ledger", LEDGER, cwd=folder, before=drop)


@pytest.mark.parametrize("is_running", [False, True], ids=["idle", "running"])
def test_a_read_only_ledger_can_be_read(tmp_path, waits_for_go, is_running):
    runner = waits_for_go() if is_running else None
    if runner is None:
        celeriac(tmp_path, "run", jobs(tmp_path, {"key": "slow", "command": "echo done"}))
    else:
        until(lambda: states(tmp_path) == {"slow": "running"}, "its state in the ledger")
    ledger = [path for path in tmp_path.iterdir() if path.name.startswith(LEDGER)]
    for path in (*ledger, tmp_path):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        for command in (["runs"], ["show", "jobs"], ["explain", "slow", "--run", "jobs"], ["logs", "jobs", "slow"]):
            ended = reading_only(tmp_path, *command)
            assert ended.status == 0, ended.err
            assert "jobs" in ended.out or "slow" in ended.out or command[0] == "logs"
        one_line_and_status_2(reading_only(tmp_path, "prune", "--keep", "0"), LEDGER)
        one_line_and_status_2(reading_only(tmp_path, "retry", "jobs"), LEDGER)
    finally:
        for path in (tmp_path, *ledger):
            path.chmod(0o700)
    assert {path for path in tmp_path.iterdir() if path.name.startswith(LEDGER)} == set(ledger)
    if runner is not None:
        (tmp_path / "go").touch()
        assert runner.wait().status == 0


# — show —


def test_show_lists_the_tasks_of_the_latest_run(tmp_path):
    celeriac(tmp_path, "run", mixed_jobs(tmp_path))
    head, titles, *tasks = celeriac(tmp_path, "show").out.splitlines()
    assert head.startswith("jobs  ended  3 tasks: 1 succeeded, 2 failed")
    assert titles.split() == ["key", "state", "attempt", "reason", "host", "duration", "started"]
    assert [task.split()[:3] for task in tasks] == [
        ["good", "success", "1"],
        ["bad", "failed", "2"],
        ["shot", "failed", "1"],
    ]
    assert "exit code 3" in tasks[1]
    assert "ended by SIGKILL" in tasks[2]


def test_show_as_json_has_the_command_and_no_secret(tmp_path):
    celeriac(tmp_path, "run", mixed_jobs(tmp_path))
    good, bad, shot = shown(tmp_path, "jobs")
    assert (good["command"], good["exit_code"], good["stdout"]["tail"]) == ("echo good; echo aside >&2", 0, "good\n")
    assert (bad["reason"], bad["exit_code"], bad["attempt"]) == ("exit_code", 3, 2)
    assert (shot["signal"], shot["env"]) == ("SIGKILL", {"TOKEN": "******", "PLAIN": "seen"})
    for more in (["show"], ["show", "--json"], ["runs"], ["explain", "shot", "--run", "jobs"]):
        assert "correct-horse" not in celeriac(tmp_path, *more).out


def test_show_filters_by_state_and_limit(tmp_path):
    celeriac(tmp_path, "run", mixed_jobs(tmp_path))
    assert list(states(tmp_path, "--failed")) == ["bad", "shot"]
    assert list(states(tmp_path, "--state", "success")) == ["good"]
    assert list(states(tmp_path, "--state", "success", "--failed", "--limit", "2")) == ["good", "bad"]
    assert states(tmp_path, "--limit", "0") == {}
    assert celeriac(tmp_path, "show", "--state", "gone").status == 2


def test_show_reads_all_pages_in_the_order_of_the_file(tmp_path):
    number = 20_500
    with RunStore(f"sqlite:///{tmp_path / LEDGER}") as store:
        run = store.create_run("many")
        run_ledger = store.open_run(run, "many", keeps_events=False)
        tasks = [Task(key=f"k{n}", command="true") for n in range(number)]
        rows = [task_row(run, str(task.key), place, task, 1.0) for place, task in enumerate(tasks)]
        store.database.write(lambda connection: insert_rows(connection, TASKS, rows))
        store.close_run(run_ledger)
    assert [task["key"] for task in shown(tmp_path)] == [f"k{n}" for n in range(number)]
    assert len(celeriac(tmp_path, "show", "--limit", "15000").out.splitlines()) == 15_002


def test_an_unknown_run_or_task_is_one_line_with_a_suggestion(tmp_path):
    celeriac(tmp_path, "run", mixed_jobs(tmp_path), "--name", "nightly")
    for command in (["show"], ["retry"], ["prune", "--run"]):
        one_line_and_status_2(celeriac(tmp_path, *command, "nigthly"), "'nigthly'", "did you mean nightly?")
    one_line_and_status_2(celeriac(tmp_path, "logs", "other", "good"), "celeriac runs lists the runs")
    one_line_and_status_2(celeriac(tmp_path, "logs", "nightly", "goof"), "did you mean good?")
    one_line_and_status_2(celeriac(tmp_path, "explain", "nothing like it", "--run", "nightly"), "'nothing like it'")
    one_line_and_status_2(celeriac(tmp_path, "show", os.fsdecode(b"\xff")), "not Unicode")


def test_show_follow_returns_when_the_run_ends(tmp_path, waits_for_go):
    runner = waits_for_go()
    with started("show", "jobs", "--follow", "--ledger", LEDGER, cwd=tmp_path) as looking:
        looking.wait_for_stderr("0/1 done")
        (tmp_path / "go").touch()
        assert runner.wait().status == 0
        ended = looking.wait()
    assert ended.status == 0
    assert ended.out.startswith("jobs  ended  1 task: 1 succeeded")
    celeriac(tmp_path, "run", mixed_jobs(tmp_path, "bad.jsonl"))
    assert celeriac(tmp_path, "show", "bad", "--follow").status == 1


def test_show_follow_returns_for_an_interrupted_run(tmp_path):
    killed(tmp_path)
    ended = celeriac(tmp_path, "show", "--follow")
    assert ended.status == 1
    assert ended.out.startswith("jobs  interrupted  2 tasks")


# — logs —


def test_logs_prints_the_bytes_of_each_stream(tmp_path):
    file = jobs(tmp_path, {"key": "a/b", "command": r"printf 'x\377\000y\r'; echo no newline | tr -d '\n' >&2"})
    celeriac(tmp_path, "run", file, "--output", "out")
    with started("logs", "jobs", "a/b", "--ledger", LEDGER, cwd=tmp_path) as logs:
        out, err = logs.process.communicate()
    assert (out, err) == (b"x\xff\0y\r", b"no newline")
    assert celeriac(tmp_path, "logs", "jobs", "a/b", "--err").out == ""
    with started("logs", "jobs", "a/b", "--out", "--ledger", LEDGER, cwd=tmp_path) as logs:
        assert logs.process.communicate() == (b"x\xff\0y\r", b"")


def test_logs_prints_the_last_lines_of_a_removed_file_with_a_notice(tmp_path):
    file = jobs(tmp_path, {"key": "long", "command": "seq 1000"}, {"key": "short", "command": "echo short"})
    celeriac(tmp_path, "run", file, "--output", "out")
    assert celeriac(tmp_path, "logs", "jobs", "long").out.startswith("1\n2\n")
    shutil.rmtree(tmp_path / "out")
    ended = celeriac(tmp_path, "logs", "jobs", "long")
    assert ended.status == 0
    assert ended.out.endswith("999\n1000\n")
    assert not ended.out.startswith("1\n2\n")
    assert "the last lines of 3,893 bytes" in ended.err
    assert "was removed" in ended.err
    all_there = celeriac(tmp_path, "logs", "jobs", "short")
    assert (all_there.out, all_there.err) == ("short\n", "")


def test_logs_of_a_run_without_a_task_says_how_to_name_one(tmp_path):
    (tmp_path / "jobs.txt").write_text("true\n")
    celeriac(tmp_path, "run", "jobs.txt")
    celeriac(tmp_path, "run", "jobs.txt", "--name", "later")
    ended = celeriac(tmp_path, "logs", "jobs")
    assert (ended.status, ended.err) == (
        2,
        (
            "celeriac: jobs: is a run, not a task; name one of its tasks, too: celeriac logs jobs KEY; "
            "celeriac show jobs lists them\n"
        ),
    )
    ended = celeriac(tmp_path, "logs", "jobs", "1")
    assert (ended.status, ended.out, ended.err) == (0, "", "celeriac: task '1' wrote nothing\n")


def test_logs_prints_the_output_of_one_attempt(tmp_path):
    command = {"key": "k", "command": "echo attempt $CELERIAC_ATTEMPT; exit 1", "retries": 1, "retry_delay": 0}
    celeriac(tmp_path, "run", jobs(tmp_path, command))
    assert celeriac(tmp_path, "logs", "jobs", "k").out == "attempt 2\n"
    assert celeriac(tmp_path, "logs", "jobs", "k", "--attempt", "1").out == "attempt 1\n"
    one_line_and_status_2(celeriac(tmp_path, "logs", "jobs", "k", "--attempt", "3"), "the last attempt that began is 2")


@pytest.mark.parametrize("output", [[], ["--output", "out"]], ids=["unkept", "kept"])
def test_logs_follow_a_running_task_to_its_end(tmp_path, waits_for_go, output):
    runner = waits_for_go(*output)
    with started("logs", "jobs", "slow", "-f", "--ledger", LEDGER, cwd=tmp_path) as logs:
        assert logs.process.stdout is not None
        assert logs.process.stdout.readline() == b"begun\n"
        (tmp_path / "go").touch()
        assert runner.wait().status == 0
        ended = logs.wait()
    assert (ended.status, ended.out, ended.err) == (0, "done\n", "aside\n")


def test_logs_follow_a_waiting_task_through_its_attempts(tmp_path):
    file = jobs(
        tmp_path,
        {"key": "first", "command": UNTIL_GO, "priority": 1},
        {"key": "later", "command": "echo $CELERIAC_ATTEMPT; exit 1", "retries": 2, "retry_delay": 0},
    )
    with started("run", file, "-j1", "--ledger", LEDGER, cwd=tmp_path) as runner:
        until(lambda: celeriac(tmp_path, "show", "jobs").status == 0 and states(tmp_path) != {}, "its tasks")
        assert celeriac(tmp_path, "logs", "jobs", "later").status == 1
        with started("logs", "jobs", "later", "-f", "--ledger", LEDGER, cwd=tmp_path) as logs:
            logs.wait_for_stderr("has not begun")
            (tmp_path / "go").touch()
            assert runner.wait().status == 1
            ended = logs.wait()
    assert (ended.status, ended.out) == (0, "1\n2\n3\n")


def test_logs_do_not_follow_an_interrupted_run(tmp_path):
    killed(tmp_path)
    ended = celeriac(tmp_path, "logs", "jobs", "ran", "-f")
    assert ended.status == 1
    assert "no process runs" in ended.err
    assert celeriac(tmp_path, "logs", "jobs", "ran").out == "begun\n"
    ended = celeriac(tmp_path, "logs", "jobs", "waited")
    assert (ended.status, ended.out) == (1, "")
    assert "has not begun" in ended.err


def test_logs_failed_shows_each_failed_attempt_in_the_order_of_the_jobs(tmp_path):
    file = jobs(
        tmp_path,
        {"key": "good", "command": "echo fine; exit 0"},
        {"key": "twice", "command": "echo try $CELERIAC_ATTEMPT; exit 3", "retries": 1, "retry_delay": 0},
        {"key": "mended", "command": "echo aside >&2; exit $((CELERIAC_ATTEMPT % 2))", "retries": 1, "retry_delay": 0},
        {"key": "mute", "command": "kill -9 $$"},
    )
    celeriac(tmp_path, "run", file)
    lines = celeriac(tmp_path, "logs", "jobs", "--failed").out.splitlines()
    assert [line.partition(", after")[0] for line in lines] == [
        "==> twice, attempt 1: exit_code: exit code 3",
        "try 1",
        "==> twice, attempt 2: exit_code: exit code 3",
        "try 2",
        "==> mended, attempt 1: exit_code: exit code 1",
        "aside",
        "==> mute, attempt 1: signal: ended by SIGKILL",
        "(it wrote nothing)",
    ]
    assert "aside" not in celeriac(tmp_path, "logs", "--failed", "--out").out
    celeriac(tmp_path, "run", "--name", "sound", jobs(tmp_path, {"key": "good", "command": "true"}))
    ended = celeriac(tmp_path, "logs", "sound", "--failed")
    assert (ended.status, ended.out, ended.err) == (0, "", "celeriac: no attempt of run 'sound' has failed\n")


def test_logs_refuses_words_that_do_not_go_together(tmp_path):
    for args, words in (
        (("jobs", "k", "--failed"), "give one RUN with --failed, and no KEY"),
        (("jobs", "--failed", "-f"), "give either --failed or --follow"),
        (("jobs", "--failed", "--attempt", "1"), "give either --failed or --attempt"),
        (("jobs", "k", "--json"), "--json goes with --failed"),
        ((), "give one RUN and one KEY, or a KEY of the latest run"),
    ):
        ended = run_in_process("logs", *args, cwd=tmp_path)
        assert (ended.status, ended.err.splitlines()[-1]) == (2, f"Error: {words}")


# — explain —


def test_explain_shows_the_events_of_an_ended_task(tmp_path):
    celeriac(tmp_path, "run", mixed_jobs(tmp_path))
    ended = celeriac(tmp_path, "explain", "bad", "--run", "jobs")
    assert ended.status == 0
    for words in ("arrived", "exit code 3", "next attempt in", "now: ended: failed: exit code 3"):
        assert words in ended.out
    [explanation] = json.loads(celeriac(tmp_path, "explain", "bad", "--run", "jobs", "--json").out)["lives"]
    events = [(event["attempt"], event["state"]) for event in explanation["moves"]]
    assert events == [(1, "running"), (1, "waiting"), (2, "running"), (2, "failed")]
    assert (explanation["queue"], explanation["now"]["waits_for"]) == ("default", "nothing")


def test_explain_says_that_no_process_runs_an_interrupted_run(tmp_path):
    killed(tmp_path)
    assert "no process runs it now" in celeriac(tmp_path, "explain", "ran", "--run", "jobs").out
    assert "now: waiting since" in celeriac(tmp_path, "explain", "waited", "--run", "jobs").out


@pytest.mark.parametrize("args", [["--events", "x", "--run", "y"], ["--ledger", "x"]])
def test_explain_refuses_conflicting_options(tmp_path, args):
    assert run("explain", "key", *args, cwd=tmp_path).status == 2


# — retry —


def failing_until_mended(folder: Path) -> Path:
    """Return a job file: two jobs fail until the file `mended` exists, and each job records its runs."""
    return jobs(
        folder,
        {"key": "good", "command": "echo good >> ran"},
        {"key": "one", "command": "echo one >> ran; test -e mended"},
        {"key": "two", "command": "echo two $TOKEN >> ran; test -e mended", "env": {"TOKEN": {"secret": "hush"}}},
    )


def test_retry_runs_unsuccessful_tasks_again_without_the_file(tmp_path):
    file = failing_until_mended(tmp_path)
    celeriac(tmp_path, "run", file)
    before = {task["key"]: task["id"] for task in shown(tmp_path)}
    file.unlink()
    (tmp_path / "ran").unlink()
    (tmp_path / "mended").touch()
    ended = celeriac(tmp_path, "retry", "jobs", "--json")
    assert ended.status == 0, ended.err
    assert (ended.summary["run"], ended.summary["tasks"], ended.summary["succeeded"]) == ("jobs", 2, 2)
    assert sorted((tmp_path / "ran").read_text().splitlines()) == ["one", "two hush"]
    after = {task["key"]: task["id"] for task in shown(tmp_path)}
    assert set(states(tmp_path).values()) == {"success"}
    assert {key for key in before if before[key] != after[key]} == {"one", "two"}
    [found] = run_list(tmp_path)
    assert (found["state"], found["tasks"], found["succeeded"]) == ("ended", 3, 3)
    nothing = celeriac(tmp_path, "retry", "jobs", "--json")
    assert (nothing.status, nothing.summary["tasks"]) == (0, 0)


def test_retry_with_keys_runs_these_tasks_in_any_final_state(tmp_path):
    celeriac(tmp_path, "run", failing_until_mended(tmp_path))
    (tmp_path / "ran").unlink()
    ended = celeriac(tmp_path, "retry", "jobs", "--key", "good", "--key", "one", "-j1")
    assert ended.status == 1
    assert (tmp_path / "ran").read_text() == "good\none\n"
    assert states(tmp_path) == {"good": "success", "one": "failed", "two": "failed"}


def test_retry_resumes_unfinished_tasks(tmp_path):
    killed(tmp_path)
    (tmp_path / "go").touch()
    ended = celeriac(tmp_path, "retry", "jobs", "--json")
    assert (ended.status, ended.summary["succeeded"]) == (0, 2), ended.err
    assert states(tmp_path) == {"ran": "success", "waited": "success"}


def test_retry_of_some_tasks_leaves_the_other_unfinished_tasks(tmp_path):
    killed(tmp_path)
    (tmp_path / "go").touch()
    none = celeriac(tmp_path, "retry", "jobs", "--failed", "--json")
    assert (none.status, none.summary["tasks"]) == (0, 0)
    one = celeriac(tmp_path, "retry", "jobs", "--key", "waited", "--json")
    assert (one.status, one.summary["succeeded"]) == (0, 1)
    assert states(tmp_path)["waited"] == "success"
    [left] = run_list(tmp_path)
    assert (left["state"], left["succeeded"], left["out"] + left["waiting"]) == ("interrupted", 1, 1)
    resumed = celeriac(tmp_path, "run", tmp_path / "jobs.jsonl", "--resume", "--json")
    assert (resumed.status, resumed.summary["succeeded"], resumed.summary["had_succeeded"]) == (0, 1, 1)


def test_retry_refuses_a_running_run_and_changes_nothing_when_it_refuses(tmp_path, waits_for_go):
    runner = waits_for_go()
    one_line_and_status_2(celeriac(tmp_path, "retry", "jobs"), f"process {runner.process.pid} on")
    (tmp_path / "go").touch()
    assert runner.wait().status == 0
    before = run_list(tmp_path)
    one_line_and_status_2(celeriac(tmp_path, "retry", "jobs", "--key", "slo"), "did you mean slow?")
    assert celeriac(tmp_path, "retry", "jobs", "--key", "slow", "--failed").status == 2
    assert run_list(tmp_path) == before


def test_retry_tracks_tasks_in_flight_and_does_not_run_them_twice(tmp_path, shared_redis: RedisServer):
    url = shared_redis.url
    file = jobs(
        tmp_path,
        {"key": "out", "command": f"echo out >> log; touch begun; {UNTIL_GO}", "cwd": str(tmp_path)},
        {"key": "bad", "command": "echo bad >> log; false", "cwd": str(tmp_path)},
    )
    with worker(tmp_path, (url, url), "--concurrency", "2"):
        with started("run", file, "--broker", url, "--ledger", LEDGER, cwd=tmp_path) as runner:
            until(lambda: (tmp_path / "begun").exists(), "the start of the command")
            until(lambda: states(tmp_path) == {"out": "running", "bad": "failed"}, "their states in the ledger")
            runner.signal(signal.SIGKILL)
            runner.wait()
        one_line_and_status_2(celeriac(tmp_path, "retry", "jobs"), "in flight with a broker", "--broker")
        one_line_and_status_2(celeriac(tmp_path, "prune", "--run", "jobs"), "in flight with a broker")
        (tmp_path / "go").touch()
        ended = celeriac(tmp_path, "retry", "jobs", "--broker", url, "--json")
    assert (ended.status, ended.summary["succeeded"], ended.summary["failures"][0]["key"]) == (1, 1, "bad")
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["bad", "bad", "out"]


def test_retry_refuses_a_task_that_can_never_start(tmp_path):
    celeriac(tmp_path, "run", jobs(tmp_path, {"key": "wide", "command": "false", "slots": 2}), "-j2")
    one_line_and_status_2(celeriac(tmp_path, "retry", "jobs", "-j1"), "wide", "slots")
    assert states(tmp_path) == {"wide": "failed"}


# — prune —


def record_runs(folder: Path, *names: str) -> None:
    """Record runs that have ended, in this order."""
    with RunStore(f"sqlite:///{folder / LEDGER}") as store:
        for name in names:
            run = store.create_run(name)
            run_ledger = store.open_run(run, name, keeps_events=False)
            task = Task(key="k", command="true", env={"FILLER": "x" * 100_000})
            row = {**task_row(run, "k", 0, task, 1.0), "state": "success"}
            store.database.write(partial(insert_rows, table=TASKS, rows=[row]))
            store.close_run(run_ledger)


def names(folder: Path) -> list[str]:
    return [run["run"] for run in run_list(folder)]


def rows(folder: Path, table: str) -> int:
    with closing(sqlite3.connect(folder / LEDGER)) as connection:
        number: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return number


def test_prune_keeps_the_latest_run_and_frees_disk_space(tmp_path):
    record_runs(tmp_path, "a", "b", "c")
    size = (tmp_path / LEDGER).stat().st_size
    preview = celeriac(tmp_path, "prune", "--keep", "1", "--dry-run")
    assert preview.out.splitlines() == ["b: 1 task", "a: 1 task", "2 runs would be removed"]
    assert names(tmp_path) == ["c", "b", "a"]
    removed = json.loads(celeriac(tmp_path, "prune", "--keep", "1", "--json").out)
    assert [run["run"] for run in removed["removed"]] == ["b", "a"]
    assert removed["bytes_freed"] > 200_000
    assert (tmp_path / LEDGER).stat().st_size < size - 200_000
    assert (names(tmp_path), rows(tmp_path, "celeriac_task")) == (["c"], 1)


def test_prune_removes_old_runs_or_given_runs(tmp_path):
    record_runs(tmp_path, "a", "b", "c")
    with closing(sqlite3.connect(tmp_path / LEDGER)) as connection, connection:
        connection.execute("UPDATE celeriac_run SET created = 1, ended = 2 WHERE name <> 'c'")
    assert "0 runs removed" in celeriac(tmp_path, "prune", "--older-than", "30", "--keep", "3").out
    assert celeriac(tmp_path, "prune", "--run", "b").status == 0
    assert names(tmp_path) == ["c", "a"]
    assert celeriac(tmp_path, "prune", "--older-than", "0.5").status == 0
    assert names(tmp_path) == ["c"]


def test_prune_needs_exactly_one_kind_of_condition(tmp_path):
    record_runs(tmp_path, "a")
    for args in ([], ["--run", "a", "--keep", "1"], ["--keep", "-1"], ["--older-than", "soon"]):
        assert celeriac(tmp_path, "prune", *args).status == 2
    assert names(tmp_path) == ["a"]


def test_prune_keeps_a_running_run_and_removes_an_interrupted_one(tmp_path, waits_for_go):
    runner = waits_for_go()
    one_line_and_status_2(celeriac(tmp_path, "prune", "--run", "jobs"), "is running in")
    stays = celeriac(tmp_path, "prune", "--keep", "0")
    assert (stays.status, "0 runs removed" in stays.out) == (0, True)
    assert "'jobs' stays" in stays.err
    runner.signal(signal.SIGKILL)
    runner.wait()
    assert celeriac(tmp_path, "prune", "--run", "jobs").status == 0
    assert (names(tmp_path), rows(tmp_path, "celeriac_task")) == ([], 0)
    until(lambda: not runner.alive(), "the end of its command")


def test_prune_keeps_runs_with_tasks_in_flight_unless_forced(tmp_path):
    record_runs(tmp_path, "a")
    with closing(sqlite3.connect(tmp_path / LEDGER)) as connection, connection:
        connection.execute("UPDATE celeriac_run SET ended = NULL, counts = NULL, output = NULL")
        connection.execute("UPDATE celeriac_task SET state = 'queued'")
    one_line_and_status_2(celeriac(tmp_path, "prune", "--run", "a"), "in flight with a broker")
    one_line_and_status_2(celeriac(tmp_path, "retry", "a"), "in flight with a broker", "--broker")
    assert celeriac(tmp_path, "prune", "--run", "a", "--force").status == 0
    assert names(tmp_path) == []


def test_prune_removes_folders_of_runs_and_leftover_rows(tmp_path):
    record_runs(tmp_path, "a", "b")
    for number in (1, 2, 7):
        folder = tmp_path / f"{LEDGER}.d" / f"run-{number}"
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x" * 10_000)
    with closing(sqlite3.connect(tmp_path / LEDGER)) as connection, connection:
        connection.execute("UPDATE celeriac_task SET run = 9 WHERE run = 1")
    freed = json.loads(celeriac(tmp_path, "prune", "--run", "a", "--json").out)["bytes_freed"]
    assert freed > 120_000
    assert [path.name for path in (tmp_path / f"{LEDGER}.d").iterdir()] == ["run-2"]
    assert (names(tmp_path), rows(tmp_path, "celeriac_task")) == (["b"], 1)


# — limits of a ledger —


def test_a_run_removes_old_runs_and_says_so_the_first_time(tmp_path):
    record_runs(tmp_path, "a", "b", "c")
    file = jobs(tmp_path, {"key": "k", "command": "true"})
    with closing(sqlite3.connect(tmp_path / LEDGER)) as connection, connection:
        connection.execute("UPDATE celeriac_run SET created = created - 91 * 86400, ended = ended - 91 * 86400")
    kept = celeriac(tmp_path, "run", file, env={"CELERIAC_LEDGER_KEEP": "everything"})
    assert (names(tmp_path), "ledger_keep" in kept.err) == (["jobs", "c", "b", "a"], False)
    with closing(sqlite3.connect(tmp_path / LEDGER)) as connection, connection:
        connection.execute("UPDATE celeriac_run SET created = ?, ended = NULL WHERE name = 'c'", (time.time(),))
    removed = celeriac(tmp_path, "run", file)
    (line,) = [line for line in removed.err.splitlines() if "ledger_keep" in line]
    assert "the ledger keeps 90 days or 2 GB: 2 older runs were removed from it" in line
    assert (names(tmp_path), rows(tmp_path, "celeriac_task")) == (["jobs-2", "jobs", "c"], 3)
    with closing(sqlite3.connect(tmp_path / LEDGER)) as connection, connection:
        connection.execute("UPDATE celeriac_run SET created = 1, ended = 2 WHERE name = 'jobs'")
    assert "ledger_keep" not in celeriac(tmp_path, "run", file).err
    assert names(tmp_path) == ["jobs-3", "jobs-2", "c"]


def test_a_run_removes_the_oldest_runs_of_a_large_ledger(tmp_path):
    record_runs(tmp_path, "a", "b", "c")
    ended = celeriac(tmp_path, "run", jobs(tmp_path, {"command": "true"}), env={"CELERIAC_LEDGER_KEEP": "250 KB"})
    assert "the ledger keeps 250 KB" in ended.err
    assert names(tmp_path) == ["jobs", "c"]


def test_a_ledger_on_a_server_keeps_its_runs_unless_an_age_was_set(tmp_path, postgres: PostgresServer):
    url = postgres.url.replace("db+", "").rpartition("/")[0] + "/limits"
    postgres.sql("CREATE DATABASE limits")
    with RunStore(url) as store:
        for name in ("old", "in flight"):
            run_ledger = store.open_run(store.create_run(name), name, keeps_events=False)
            state = "queued" if name == "in flight" else "success"
            row = {**task_row(run_ledger.run, "k", 0, Task(key="k", command="true"), 1.0), "state": state}
            store.database.write(partial(insert_rows, table=TASKS, rows=[row]))
            store.close_run(run_ledger)
        aged = update(RUNS).values(created=1.0, ended=case((RUNS.c.ended.is_(None), None), else_=2.0))
        store.database.write(lambda connection: connection.execute(aged))
        file = jobs(tmp_path, {"command": "true"})

        def run_with(keep: dict[str, str]) -> tuple[str, set[str]]:
            ended = run("run", file, "--ledger", url, cwd=tmp_path, env=keep)
            assert ended.status == 0
            with store.database.reading() as connection:
                return ended.err, set(connection.execute(select(RUNS.c.name)).scalars())

        assert run_with({})[1] == {"old", "in flight", "jobs"}
        err, left = run_with({"CELERIAC_LEDGER_KEEP": "90 days"})
        assert "the ledger keeps 90 days: 1 older runs were removed" in err
        assert left == {"in flight", "jobs", "jobs-2"}
    refused = run("run", file, "--ledger", url, cwd=tmp_path, env={"CELERIAC_LEDGER_KEEP": "2 GB"})
    one_line_and_status_2(refused, "give an age")


def test_a_wrong_limit_is_one_line(tmp_path):
    file = jobs(tmp_path, {"command": "true"})
    one_line_and_status_2(celeriac(tmp_path, "run", file, env={"CELERIAC_LEDGER_KEEP": "9 weeks"}), "90 days or 2 GB")


def test_prune_removes_the_temporary_output_of_failed_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    file = jobs(tmp_path, {"key": "bad", "command": "echo why >&2; exit 1"})
    assert celeriac(tmp_path, "run", file).status == 1
    assert celeriac(tmp_path, "run", file).status == 1
    second = max((tmp_path / "tmp").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    pruned = json.loads(celeriac(tmp_path, "prune", "--run", "jobs", "--json").out)
    assert pruned["folders_removed"] == 1
    assert list((tmp_path / "tmp").iterdir()) == [second]
    for path in (*second.iterdir(), second):
        os.utime(path, (1, 1))
    assert "1 temporary folder removed" in celeriac(tmp_path, "prune", "--older-than", "30").out
    assert list((tmp_path / "tmp").iterdir()) == []


# — on a server —


def test_all_commands_read_a_ledger_on_postgresql(tmp_path, postgres: PostgresServer):
    ledger = ("--ledger", postgres.url.replace("db+", ""))

    def on_server(*args: str | Path) -> Ended:
        return run(*args, *ledger, cwd=tmp_path)

    assert on_server("run", failing_until_mended(tmp_path)).status == 1
    [found] = json.loads(on_server("runs", "--json").out)
    assert (found["state"], found["succeeded"], found["failed"]) == ("ended", 1, 2)
    assert [json.loads(line)["key"] for line in on_server("show", "--failed", "--json").out.splitlines()] == [
        "one",
        "two",
    ]
    assert "exit code 1" in on_server("explain", "one", "--run", "jobs").out
    assert on_server("logs", "jobs", "one").out == ""
    one_line_and_status_2(on_server("logs", "jobs", "oen"), "did you mean one?")
    (tmp_path / "mended").touch()
    assert on_server("retry", "jobs").status == 0
    assert on_server("show", "jobs", "--follow").status == 0
    assert json.loads(on_server("prune", "--keep", "0", "--json").out)["bytes_freed"] is None
    assert json.loads(on_server("runs", "--json").out) == []


# — the width of a terminal —


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("command", ["runs", "show", "config"])
def test_no_line_is_wider_than_the_terminal(many_facts, command, width):
    args = () if command == "config" else ("--ledger", LEDGER)
    shown = run_in_process(command, *args, cwd=many_facts, env={"COLUMNS": str(width)})
    assert shown.status == 0
    assert max(map(len, shown.out.splitlines())) <= width


@pytest.fixture(scope="module")
def many_facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two tasks, whose names are long."""
    folder = tmp_path_factory.mktemp("a folder with a long name")
    key = "a-task-with-a-name-that-is-longer-than-forty-columns"
    file = jobs(folder, {"key": key, "command": "exit 3"}, {"key": "b", "command": "true", "needs": key})
    celeriac(folder, "run", file, "--name", "a-run-whose-name-is-long-too")
    return folder
