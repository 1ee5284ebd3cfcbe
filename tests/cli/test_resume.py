"""`celeriac run` with a ledger: which tasks --resume runs again."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_runner import Ended, run, started, until, without_password_warning
from tests.support.workers import worker

RECORD = "echo $CELERIAC_KEY >> ran; "


class Place:
    """A folder with a job file and a ledger of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "ledger.db"

    def write(self, *jobs: dict[str, Any]) -> None:
        (self.folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))

    def run(self, *options: str) -> Ended:
        return run("run", "jobs.jsonl", "--json", *self.ledger_option, *options, cwd=self.folder)

    def started(self, *options: str) -> Any:
        return started("run", "jobs.jsonl", "--json", *self.ledger_option, *options, cwd=self.folder)

    @property
    def ledger_option(self) -> tuple[str, str]:
        return "--ledger", str(self.ledger)

    def state_of(self, key: str) -> str:
        with closing(sqlite3.connect(self.ledger)) as ledger:
            ((state,),) = ledger.execute("SELECT state FROM celeriac_task WHERE key = ?", (key,))
        return str(state)

    @property
    def ran(self) -> Counter[str]:
        file = self.folder / "ran"
        return Counter(file.read_text().split()) if file.exists() else Counter()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def job(key: str, then: str = "true", **fields: Any) -> dict[str, Any]:
    return {"key": key, "command": RECORD + then, **fields}


def counts(ended: Ended) -> dict[str, Any]:
    names = ("run", "tasks", "succeeded", "failed", "never_ran", "had_succeeded", "had_failed")
    return {name: ended.summary[name] for name in names if ended.summary[name]}


def test_a_succeeded_task_is_not_run_again(place):
    place.write(job("a"), job("b", "exit 3"), job("c"))
    assert counts(place.run()) == {"run": "jobs", "tasks": 3, "succeeded": 2, "failed": 1}
    again = place.run("--resume")
    assert counts(again) == {"run": "jobs", "had_succeeded": 2, "had_failed": 1}
    assert again.status == 1
    assert place.ran == {"a": 1, "b": 1, "c": 1}


def test_resume_failed_runs_failed_tasks_again(place):
    place.write(job("a"), job("b", "test -e good"))
    place.run()
    (place.folder / "good").touch()
    again = place.run("--resume-failed")
    assert counts(again) == {"run": "jobs", "tasks": 1, "succeeded": 1, "had_succeeded": 1}
    assert again.status == 0
    assert place.ran == {"a": 1, "b": 2}


def test_a_skipped_task_runs_after_its_dependency_succeeds(place):
    place.write(
        job("end", needs=["bad", "good"]),
        job("bad", "test -e good-now", needs="good"),
        job("good"),
        job("new", needs="end"),
    )
    assert place.run().summary["skipped"] == 2
    again = place.run("--resume")
    assert (again.status, again.summary["tasks"], again.summary["skipped"], again.summary["had_failed"]) == (1, 2, 2, 1)
    (place.folder / "good-now").touch()
    again = place.run("--resume-failed")
    assert counts(again) == {"run": "jobs", "tasks": 3, "succeeded": 3, "had_succeeded": 1}
    assert place.ran == {"good": 1, "bad": 2, "end": 1, "new": 1}


def test_blocked_tasks_of_a_killed_run_are_blocked_again(place):
    place.write(
        job("c", "test -e b-is-done", needs=["b", "a"]),
        job("b", "touch begun; while [ ! -e go ]; do sleep 0.02; done; touch b-is-done", needs="a"),
        job("a"),
    )
    with place.started() as celeriac:
        until((place.folder / "begun").exists, "the second command")
        until(lambda: place.state_of("a") == "success", "the end of the first one in the ledger")
        celeriac.kill()
    (place.folder / "go").touch()
    again = place.run("--resume")
    assert (again.status, counts(again)["had_succeeded"], counts(again)["succeeded"]) == (0, 1, 2)
    assert place.ran == {"a": 1, "b": 2, "c": 1}


def test_a_changed_command_runs_again_and_a_changed_priority_does_not(place):
    place.write(job("a"), job("b"), job("c"), job("d"))
    place.run()
    place.write(job("a", "true # changed"), job("b", priority=7, timeout=60), job("c", env={"A": "1"}), job("new"))
    again = place.run("--resume")
    assert counts(again) == {"run": "jobs", "tasks": 3, "succeeded": 3, "had_succeeded": 1}
    assert place.ran == {"a": 2, "b": 1, "c": 2, "d": 1, "new": 1}


def test_resume_appends_to_the_events_file(place):
    place.write(job("a"), job("b", "exit 1"))
    place.run("--events", "events")
    place.run("--events", "events", "--resume-failed")
    ends = [json.loads(line) for line in (place.folder / "events").read_text().splitlines()]
    reported = [(end["key"], end["state"]) for end in ends if end["state"] in ("success", "failed")]
    assert sorted(reported[:2]) == [("a", "success"), ("b", "failed")]  # both run at once: either may end first
    assert reported[2:] == [("b", "failed")]


def test_without_resume_all_tasks_run_in_a_new_run(place):
    place.write(job("a"))
    assert counts(place.run())["run"] == "jobs"
    assert counts(place.run())["run"] == "jobs-2"
    assert counts(place.run("--name", "tonight"))["run"] == "tonight"
    assert place.ran == {"a": 3}


def test_resume_takes_the_last_run_of_the_file(place):
    place.write(job("a", "test -e good"))
    place.run()
    place.run()
    (place.folder / "good").touch()
    assert counts(place.run("--resume-failed"))["run"] == "jobs-2"


def test_resume_without_an_earlier_run_runs_all_tasks(place):
    place.write(job("a"))
    assert counts(place.run("--resume")) == {"run": "jobs", "tasks": 1, "succeeded": 1}


def test_resume_of_an_interrupted_run_runs_the_tasks_that_never_ran(place):
    place.write(job("a", "touch begun; while [ ! -e go ]; do sleep 0.02; done"), job("b"), job("c"))
    with place.started("-j", "1") as celeriac:
        until((place.folder / "begun").exists, "the first command")
        celeriac.signal(signal.SIGINT)
        celeriac.wait_for_stderr("interrupted")
        (place.folder / "go").touch()
        ended = celeriac.wait()
    assert counts(ended) == {"run": "jobs", "tasks": 3, "succeeded": 1, "never_ran": 2}
    assert counts(place.run("--resume")) == {"run": "jobs", "tasks": 2, "succeeded": 2, "had_succeeded": 1}
    assert place.ran == {"a": 1, "b": 1, "c": 1}


def test_resume_of_a_killed_run_runs_the_unfinished_tasks(place):
    gate = "while [ ! -e go ]; do sleep 0.02; done"
    place.write(job("first"), job("second", gate), job("third"))
    with place.started("-j", "1") as celeriac:
        until(lambda: place.ran["second"], "the second command")
        celeriac.kill()
    (place.folder / "go").touch()
    again = counts(place.run("--resume"))
    assert again["succeeded"] + again.get("had_succeeded", 0) == 3  # the ledger may lack the first end
    assert place.ran == {"first": 1, "second": 2, "third": 1}


def test_resume_on_a_cluster_tracks_tasks_in_flight_and_sends_nothing_twice(place, shared_redis):
    urls = (shared_redis.url, shared_redis.url)
    at = ("--broker", shared_redis.url)
    gate = "while [ ! -e go ]; do sleep 0.02; done"
    place.write(*(job(f"task-{n}", gate, cwd=str(place.folder)) for n in range(6)))
    with worker(place.folder, urls, "--concurrency", "2"):
        with place.started(*at) as celeriac:
            until(lambda: place.ran.total() == 2, "two commands")
            celeriac.signal(signal.SIGKILL)
            celeriac.process.wait()
        refused = place.run("--resume")
        assert (refused.status, "of its tasks may still be in flight with a broker" in refused.err) == (2, True)
        (place.folder / "go").touch()
        again = counts(place.run("--resume", *at))
    assert again == {"run": "jobs", "tasks": 6, "succeeded": 6}
    assert place.ran == {f"task-{n}": 1 for n in range(6)}


def test_a_task_that_was_removed_from_the_file_does_not_run(place):
    gate = "while [ ! -e go ]; do sleep 0.02; done"
    place.write(job("a", gate), job("b"), job("c"))
    with place.started("-j", "1") as celeriac:
        until(lambda: place.ran["a"], "the first command")
        celeriac.kill()
    (place.folder / "go").touch()
    place.write(job("a", gate), job("c"))
    assert counts(place.run("--resume")) == {"run": "jobs", "tasks": 2, "succeeded": 2}
    assert place.ran == {"a": 2, "c": 1}


def test_a_running_run_cannot_be_resumed(place):
    place.write(job("a", "while [ ! -e go ]; do sleep 0.02; done"))
    with place.started() as celeriac:
        until(lambda: place.ran["a"], "the command")
        refused = place.run("--resume")
        (place.folder / "go").touch()
        assert celeriac.wait().status == 0
    assert refused.status == 2
    assert "run 'jobs': is running in process" in refused.err
    assert place.ran == {"a": 1}


def test_a_run_of_standard_input_is_recorded_and_cannot_be_resumed(place):
    ended = run("run", "-", "--json", *place.ledger_option, cwd=place.folder, stdin=b"true\n")
    assert counts(ended) == {"run": "stdin", "tasks": 1, "succeeded": 1}
    refused = run("run", "-", "--resume", *place.ledger_option, cwd=place.folder, stdin=b"true\n")
    assert refused.status == 2
    assert "--resume needs a FILE that can be read again" in refused.err


def test_ledger_none_records_nothing(place):
    place.write(job("a"))
    assert run("run", "jobs.jsonl", "--json", "--ledger", "none", cwd=place.folder).summary["run"] is None
    refused = run("run", "jobs.jsonl", "--resume", "--ledger", "none", cwd=place.folder)
    assert (refused.status, refused.err.splitlines()) == (
        2,
        ["celeriac: --resume: there is no ledger to resume from; name the ledger of the run"],
    )
    assert not place.ledger.exists()


def test_only_the_user_can_read_the_default_ledger(place, monkeypatch):
    monkeypatch.delenv("CELERIAC_LEDGER")
    place.write(job("a"))
    run("run", "jobs.jsonl", cwd=place.folder, env={"XDG_STATE_HOME": str(place.folder / "state")})
    ledger = place.folder / "state" / "celeriac" / "ledger.db"
    assert ledger.stat().st_mode & 0o077 == 0
    assert ledger.parent.stat().st_mode & 0o077 == 0


def test_a_run_goes_on_with_a_warning_if_the_default_ledger_cannot_be_created(place, monkeypatch):
    monkeypatch.delenv("CELERIAC_LEDGER")
    place.write(job("a"))
    (place.folder / "state").write_text("a file")
    ended = run("run", "jobs.jsonl", cwd=place.folder, env={"XDG_STATE_HOME": str(place.folder / "state")})
    assert ended.status == 0
    assert ended.err.count("this run is not recorded") == 1


def test_a_given_ledger_that_cannot_be_created_is_refused_before_any_task_runs(place):
    place.write(job("a"))
    (place.folder / "file").touch()
    refused = run("run", "jobs.jsonl", "--ledger", "file/ledger.db", cwd=place.folder)
    assert refused.status == 2
    (line,) = refused.err.splitlines()
    assert line.startswith("celeriac: ledger: ")
    assert place.ran == {}


def test_a_locked_ledger_pauses_the_run_and_gets_all_ends_afterwards(place):
    rest = [job(f"task-{n}", "sleep 0.2") for n in range(20)]
    place.write(job("a", "while [ ! -e go ]; do sleep 0.02; done"), *rest)
    with place.started("-j", "1") as celeriac:
        until(lambda: place.ran["a"], "the first command")
        with closing(sqlite3.connect(place.ledger, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            (place.folder / "go").touch()
            celeriac.wait_for_stderr("nothing is started until it can be written: ")
            assert place.ran.total() < 10  # those started before the lock was noticed
        ended = celeriac.wait()
    assert counts(ended) == {"run": "jobs", "tasks": 21, "succeeded": 21}
    assert counts(place.run("--resume"))["had_succeeded"] == 21


def test_a_damaged_ledger_is_one_line_and_no_task_runs(place):
    place.write(job("a"))
    place.ledger.write_text("no database" * 1000)
    refused = place.run()
    assert refused.status == 2
    (line,) = refused.err.splitlines()
    assert line.endswith("is damaged: DatabaseError: file is not a database; put a copy in its place, or move it away")
    assert place.ran == {}


def test_the_password_of_a_ledger_is_not_shown(place):
    place.write(job("a"))
    url = "postgresql://me:hush@127.0.0.1:1/name"
    refused = run("run", "jobs.jsonl", "--ledger", url, cwd=place.folder)
    assert refused.status == 2
    assert "hush" not in refused.err
    assert len(without_password_warning(refused.err).splitlines()) == 1
