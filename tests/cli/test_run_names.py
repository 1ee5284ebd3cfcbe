"""The names of runs: what a run says of itself, what a name means in a folder, and commands without a name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from celeriac.runs.record import default_name
from tests.support.cli_runner import Ended, jobs, run, run_in_process


class TwoFolders(NamedTuple):
    """Two folders with a job file of the same name, and the first lines that its runs printed."""

    there: Path
    here: Path
    ledger: Path
    ended: list[Ended]

    def ask(self, *args: str | Path, cwd: Path) -> Ended:
        return run_in_process(*args, "--ledger", self.ledger, cwd=cwd)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TwoFolders:
    folder = tmp_path_factory.mktemp("folders")
    folders = TwoFolders(folder / "there", folder / "here", folder / "ledger.db", [])
    for each in (folders.there, folders.here):
        each.mkdir()
        file = jobs(each, {"key": "good", "command": "echo $PWD"}, {"key": "bad", "command": "exit 3"})
        folders.ended.append(run("run", file.name, "--ledger", folders.ledger, cwd=each))
    return folders


def test_a_run_says_its_name_at_the_start_and_in_the_summary(folders):
    lines = folders.ended[1].err.splitlines()
    assert lines[0] == "run jobs-2: 2 tasks"
    assert lines[-2:] == [
        "run jobs-2: see celeriac logs jobs-2 bad",
        "to run again what did not succeed: celeriac retry jobs-2",
    ]


def test_a_run_that_succeeded_names_the_command_that_shows_it(tmp_path):
    good = jobs(tmp_path, "true", name="good ones.txt")
    lines = run("run", good, "--ledger", "ledger.db", cwd=tmp_path).err.splitlines()
    assert (lines[0], lines[-1]) == ("run good ones: 1 task", "run good ones: see celeriac show 'good ones'")


@pytest.mark.parametrize("args", [("--quiet", "--ledger", "ledger.db"), ("--ledger", "none")], ids=" ".join)
def test_a_quiet_run_and_one_without_a_ledger_say_no_name(tmp_path, args):
    assert "run jobs" not in run("run", jobs(tmp_path, "exit 1", name="jobs.txt"), *args, cwd=tmp_path).err


def test_a_name_means_the_run_of_this_folder_first(folders):
    here, there = folders.here, folders.there
    output = folders.ask("logs", "jobs", "good", cwd=here)
    assert output.out == f"{here}\n"
    assert output.err == f"celeriac: 'jobs' is 'jobs-2' here, the latest run of {here}/jobs.jsonl\n"
    assert folders.ask("logs", "jobs", "good", cwd=there).out == f"{there}\n"
    assert folders.ask("show", "jobs", cwd=here).out.startswith("jobs-2 ")
    assert folders.ask("show", "jobs", cwd=here.parent).out.startswith("jobs ")
    explained = json.loads(folders.ask("explain", "bad", "--run", "jobs", "--json", cwd=here).out)
    shown = folders.ask("show", "jobs-2", "--failed", "--json", cwd=there).out
    assert explained["lives"][0]["id"] == json.loads(shown)["id"]
    retried = run("retry", "jobs", "--ledger", folders.ledger, cwd=here)
    assert retried.err.startswith("run jobs-2 resumes\n")


def test_commands_that_remove_take_the_exact_name(folders):
    pruned = folders.ask("prune", "--run", "jobs", "--dry-run", "--json", cwd=folders.here)
    assert [each["run"] for each in json.loads(pruned.out)["removed"]] == ["jobs"]


def test_commands_without_a_run_take_the_latest(folders):
    there = folders.there
    assert folders.ask("logs", "good", cwd=there).out == f"{folders.here}\n"
    assert folders.ask("show", cwd=there).out.startswith("jobs-2 ")
    assert "exit code 3" in folders.ask("explain", "bad", cwd=there).out
    retried = run("retry", "--json", "--ledger", folders.ledger, cwd=there)
    assert (retried.status, retried.summary["run"], retried.summary["failed"]) == (1, "jobs-2", 1)


def test_explain_looks_in_the_latest_run_if_no_executor_knows_the_task(folders):
    env = {"CELERIAC_LEDGER": str(folders.ledger)}
    explained = run_in_process("explain", "bad", cwd=folders.there, env=env)
    assert (explained.status, "exit code 3" in explained.out) == (0, True)
    assert (
        explained.err == "celeriac: no run that is active has 'bad'; this is what the latest run, 'jobs-2', recorded\n"
    )
    unknown = run_in_process("explain", "nothing", cwd=folders.there, env=env)
    assert (unknown.status, unknown.err) == (1, "celeriac: no task 'nothing' is known\n")


def test_too_many_names_are_a_usage_error(tmp_path):
    ended = run_in_process("logs", "jobs", "a", "b", cwd=tmp_path)
    assert ended.status == 2
    assert "give one RUN and one KEY, or a KEY of the latest run" in ended.err


@pytest.mark.parametrize(
    ("file", "name"),
    [("-", "stdin"), ("/dev/stdin", "stdin"), ("/dev/fd/63", "pipe"), ("/proc/self/fd/63", "pipe"), ("/srv/63", "63")],
)
def test_the_jobs_of_another_program_give_a_run_a_name(file, name):
    assert default_name(file) == name
