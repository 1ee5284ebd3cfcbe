"""Jobs with a folder for their temporary files: it is gone when the attempt has ended, however that was."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.support.cli_runner import jobs, run, run_in_process, started, until
from tests.support.workers import worker

LEDGER = ("--ledger", "ledger.db")
FILL = "cd $CELERIAC_TMPDIR && mkdir -p a/b && touch a/b/c d && ln -s / root && chmod 500 a/b && "


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    return {"TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture(params=["redis", pytest.param("rabbit", marks=pytest.mark.slow)])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return the URLs of a broker and a result backend."""
    if request.param == "redis":
        url = request.getfixturevalue("shared_redis").url
        return url, url
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


def left(folder: Path) -> list[str]:
    """Return the scratch folders, and the folders of supervisors with scratch folders."""
    return [path.name for path in folder.glob("tmp/celeriac-scratch-*")]


def folders(folder: Path) -> list[Path]:
    """Return the scratch folders that the commands had."""
    file = folder / "log"
    return [Path(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_each_attempt_has_a_folder_of_its_own_that_is_removed(tmp_path, env):
    note = f"echo $CELERIAC_TMPDIR >> {tmp_path}/log; "
    file = jobs(
        tmp_path,
        {"command": note + FILL + "true", "scratch": True},
        {"command": note + FILL + "exit 1", "scratch": True, "retries": 1, "retry_delay": 0},
        {"command": note + FILL + "kill -9 $$", "scratch": True, "cwd": "/"},
        {"command": note + FILL + "sleep 60", "scratch": True, "timeout": 0.5},
        {"command": f"test -z $CELERIAC_TMPDIR && touch {tmp_path}/none"},
    )
    ended = run("run", file, "--json", cwd=tmp_path, env=env)
    assert (ended.summary["succeeded"], ended.summary["failed"], ended.summary["retried"]) == (2, 3, 1)
    used = folders(tmp_path)
    assert len(set(used)) == 5
    assert {path.parent.parent for path in used} == {tmp_path / "tmp"}
    assert not left(tmp_path)


def test_an_option_gives_all_jobs_a_folder_and_is_remembered(tmp_path, env):
    (tmp_path / "jobs.txt").write_text(
        "test -d $CELERIAC_TMPDIR && touch ran-1\ntest -e go && touch $CELERIAC_TMPDIR/x\n"
    )
    assert run("run", "-q", "jobs.txt", "--scratch", *LEDGER, cwd=tmp_path, env=env).status == 1
    (tmp_path / "go").touch()
    ended = run("run", "-q", "jobs.txt", "--resume-failed", *LEDGER, cwd=tmp_path, env=env)
    assert (ended.status, ended.err.count("\n"), (tmp_path / "ran-1").exists()) == (0, 0, True)
    listed = run("run", "jobs.txt", "--dry-run", "--json", "--scratch", cwd=tmp_path).out.splitlines()
    assert [json.loads(line)["scratch"] for line in listed] == [True, True]


def test_a_table_says_which_jobs_have_a_folder(tmp_path, env):
    (tmp_path / "jobs.csv").write_text(
        "command,scratch\ntest -d $CELERIAC_TMPDIR,TRUE\ntest -z $CELERIAC_TMPDIR,false\n"
    )
    assert run("run", "-q", "jobs.csv", cwd=tmp_path, env=env).status == 0


@pytest.mark.parametrize("command", ["run", "submit"])
def test_another_value_is_refused_before_anything_runs(tmp_path, command):
    file = jobs(tmp_path, {"command": "touch ran", "scratch": "yes"})
    ended = run_in_process(command, file, *LEDGER, cwd=tmp_path)
    line = f'{file}:1: scratch: "yes" is neither true nor false; write true or false'
    assert (ended.status, ended.err.splitlines()[0]) == (2, line)


def test_a_folder_that_cannot_be_made_fails_the_attempt(tmp_path, env):
    first = {"command": "rm -r $CELERIAC_TMPDIR $(dirname $CELERIAC_TMPDIR)", "scratch": True}
    file = jobs(tmp_path, first, {"command": "touch ran", "scratch": True})
    ended = run("run", file, "-j1", "--json", "--events", "events", cwd=tmp_path, env=env)
    last = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    assert (ended.status, last["reason"], (tmp_path / "ran").exists()) == (1, "not_started", False)
    assert last["detail"].startswith(f"its scratch folder cannot be made in {tmp_path}/tmp/celeriac-scratch-")
    assert last["detail"].endswith(": No such file or directory")


@pytest.mark.parametrize("victim", ["supervisor", "celeriac"])
def test_folders_of_a_killed_process_are_removed(tmp_path, env, victim):
    command = f"echo $CELERIAC_TMPDIR >> {tmp_path}/log; {FILL} test -e {tmp_path}/go || exec sleep 60"
    file = jobs(tmp_path, {"command": command, "scratch": True})
    with started("run", file, *LEDGER, "--json", cwd=tmp_path, env=env) as celeriac:
        until(lambda: len(folders(tmp_path)) == 1, "the start of the command")
        (tmp_path / "go").touch()
        if victim == "supervisor":
            for process in celeriac.supervisors():
                process.kill()
            assert celeriac.wait().summary["succeeded"] == 1
        else:
            celeriac.kill()
            celeriac.wait_until_nothing_is_alive()
            until(lambda: not left(tmp_path), "the end of the scratch folders")
    assert not left(tmp_path)


def test_folders_of_a_machine_that_lost_power_are_removed_later(tmp_path, env):
    abandoned = tmp_path / "tmp" / "celeriac-scratch-0123"
    (abandoned / "1").mkdir(parents=True)
    file = jobs(tmp_path, {"command": "true", "scratch": True})
    assert run("run", "-q", file, cwd=tmp_path, env=env).status == 0
    assert not left(tmp_path)


@pytest.mark.celery
def test_the_folder_of_a_killed_worker_is_removed_and_the_next_one_gives_another(urls, tmp_path, env, monkeypatch):
    command = f"echo $CELERIAC_TMPDIR >> {tmp_path}/log; test -e {tmp_path}/go || exec sleep 60"
    file = jobs(tmp_path, {"command": command, "scratch": True})
    monkeypatch.setenv("TMPDIR", env["TMPDIR"])
    with started("run", file, "--broker", urls[0], "--backend", urls[1], "--json", cwd=tmp_path) as celeriac:
        with worker(tmp_path, urls, "--concurrency", "1") as first:
            until(lambda: len(folders(tmp_path)) == 1, "the start of the command")
            first.process.send_signal(signal.SIGKILL)
            until(lambda: not left(tmp_path), "the end of the scratch folder")
        (tmp_path / "go").touch()
        with worker(tmp_path, urls, "--concurrency", "1"):
            assert celeriac.wait().summary["succeeded"] == 1
    assert len(set(folders(tmp_path))) == 2
    until(lambda: not left(tmp_path), "the end of the second folder")
