"""`celeriac submit` and `celeriac serve`: real processes on SQLite, and on PostgreSQL with Redis and a worker."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from celeriac.errors import LedgerLost, LedgerUnavailable
from celeriac.ledger.owned_run import OwnedRun, run_key
from celeriac.ledger.owned_runs import OwnedRuns
from celeriac.ledger.prune import PruneFilter, reason_to_keep
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schema import RUNS
from celeriac.ledger.submit import insert_submission, write_tasks
from celeriac.ledger.views import Counts, RunState, find_run
from celeriac.task.task import Task
from tests.support.cli_runner import jobs, run, started, until
from tests.support.long import slow
from tests.support.service_host import (
    GATE,
    all_succeeded,
    begun,
    ended,
    job,
    postgres_ledger,
    serving,
    states,
    submit,
    until_ended,
)
from tests.support.workers import worker


@pytest.fixture
def ledger(postgres) -> str:
    return postgres_ledger(postgres, f"ledger_{uuid4().hex}")


@pytest.fixture
def file_ledger(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


# — on one machine —


def test_what_is_submitted_before_anybody_serves_runs_once_somebody_does(tmp_path, file_ledger):
    name = submit(tmp_path, file_ledger, job("a", "echo said"), job("b", "true"))
    shown = json.loads(run("status", "--ledger", file_ledger, "--json", cwd=tmp_path).out)
    with serving(tmp_path, "one", file_ledger, "--output", "out") as one:
        until_ended(file_ledger, name)
        one.hears("run ended")
    assert name == "jobs"
    assert [(row["name"], row["owner"], row["waiting"]) for row in shown["runs"]] == [("jobs", None, 2)]
    assert all_succeeded(file_ledger, name, 2)
    assert sorted(begun(tmp_path)) == [("a", 1), ("b", 1)]
    assert (tmp_path / "out" / "jobs%2Fa.out").read_text() == "said\n"
    (line,) = one.lines("run ended")
    assert (line["run"], line["success"], line["failed"]) == ("jobs", 2, 0)


def test_submit_waits_for_the_end_and_ends_as_run_would(tmp_path, file_ledger):
    good, bad = (
        jobs(tmp_path, job("a", "true"), name="good.jsonl"),
        jobs(tmp_path, job("b", "exit 3"), name="bad.jsonl"),
    )
    with serving(tmp_path, "one", file_ledger):
        well = run("submit", good, "--ledger", file_ledger, "--wait", cwd=tmp_path)
        badly = run("submit", bad, "--ledger", file_ledger, "--wait", "--json", cwd=tmp_path)
        again = run("submit", good, "--ledger", file_ledger, cwd=tmp_path)
    assert (well.status, well.out) == (0, "good\n")
    assert badly.status == 1
    assert badly.summary == {
        "run": "bad", "tasks": 1, "succeeded": 0, "failed": 1, "revoked": 0, "skipped": 0, "exit_status": 1,
    }  # fmt: skip
    assert again.out == "good-2\n"


def test_an_interrupt_ends_the_wait_and_not_the_run(tmp_path, file_ledger):
    file = jobs(tmp_path, job("a"))
    with (
        serving(tmp_path, "one", file_ledger),
        started("submit", file, "--ledger", file_ledger, "--wait", cwd=tmp_path) as waiting,
    ):
        until(lambda: begun(tmp_path), "its start")
        waiting.signal(signal.SIGINT)
        interrupted = waiting.wait()
        (tmp_path / "go").touch()
        until_ended(file_ledger, "jobs")
    assert interrupted.status == 130
    assert "run jobs goes on" in interrupted.err
    assert all_succeeded(file_ledger, "jobs", 1)


def test_term_lets_what_runs_end_and_leaves_the_rest_to_the_next(tmp_path, file_ledger):
    tasks = [job("first"), job("fails", GATE + "; exit 1", retries=3, retry_delay=0.01), job("rest", "true")]
    submit(tmp_path, file_ledger, *tasks)
    with serving(tmp_path, "one", file_ledger, "-j", "2") as one:
        until(lambda: len(begun(tmp_path)) == 2, "two starts")
        one.celeriac.signal(signal.SIGTERM)
        one.hears("stopping")
        (tmp_path / "go").touch()
        status = one.ends()
        assert one.celeriac.alive() == []
    left = states(file_ledger, "jobs")
    with serving(tmp_path, "two", file_ledger) as two:
        until_ended(file_ledger, "jobs")
        assert two.taken("jobs")[0].get("taken_from") is None
    assert status == 0
    assert left == {"success": 1, "waiting": 2}
    assert states(file_ledger, "jobs") == {"success": 2, "failed": 1}
    assert Counter(begun(tmp_path)) == Counter(
        [("first", 1), ("rest", 1), *(("fails", attempt) for attempt in (1, 2, 3, 4))]
    )


def test_what_outlasts_the_grace_is_dead_when_serve_has_ended_and_runs_again(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("long"))
    with serving(tmp_path, "one", file_ledger, "--grace", "0.2") as one:
        until(lambda: begun(tmp_path), "its start")
        one.celeriac.signal(signal.SIGTERM)
        assert one.ends() == 0
        assert one.celeriac.alive() == []
    (tmp_path / "go").touch()
    with serving(tmp_path, "two", file_ledger):
        until_ended(file_ledger, "jobs")
    assert all_succeeded(file_ledger, "jobs", 1)
    assert begun(tmp_path) == [("long", 1), ("long", 2)]


def test_a_killed_serve_is_followed_by_the_next_on_the_same_file(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, *(job(f"k{n}", "true") for n in range(50)), job("gated", priority=1))
    with serving(tmp_path, "one", file_ledger, "-j", "1") as one:
        until(lambda: begun(tmp_path), "a start")
        one.celeriac.kill()
        (tmp_path / "go").touch()
        with serving(tmp_path, "two", file_ledger) as two:
            until_ended(file_ledger, "jobs")
    assert two.taken("jobs")[0]["taken_from"].startswith(f"process {one.celeriac.process.pid} on ")
    assert all_succeeded(file_ledger, "jobs", 51)
    assert Counter(begun(tmp_path)) == Counter([("gated", 1), ("gated", 2), *((f"k{n}", 1) for n in range(50))])


def test_without_a_broker_a_second_one_waits_for_the_end_of_the_first(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"))
    with serving(tmp_path, "one", file_ledger) as one:
        until(lambda: begun(tmp_path), "its start")
        with serving(tmp_path, "impatient", file_ledger) as impatient, serving(tmp_path, "two", file_ledger) as two:
            impatient.hears("waiting until the commands")
            impatient.celeriac.signal(signal.SIGTERM)
            assert impatient.ends() == 0
            one.celeriac.kill()
            (tmp_path / "go").touch()
            until_ended(file_ledger, "jobs")
            assert len(two.taken("jobs")) == 1
    assert begun(tmp_path) == [("a", 1), ("a", 2)]


def test_what_a_task_needs_has_ended_before_it_starts_whoever_serves(tmp_path, file_ledger):
    tasks = [
        job("last", "true", needs=["second", "good"], priority=9),
        job("second", "true", needs="first", priority=8),
        job("first", GATE, priority=1),
        job("good", "true"),
        job("bad", "exit 1", priority=5),
        job("skipped", "true", needs="bad"),
        job("also", "true", needs="skipped"),
        job("not", "true", needs=["bad", "last"], on_need_failed="run"),
    ]
    submit(tmp_path, file_ledger, *tasks)
    with serving(tmp_path, "one", file_ledger, "-j", "2") as one:
        until(lambda: states(file_ledger, "jobs").get("success") == 1, "the good one's end")
        until(lambda: "failed" in states(file_ledger, "jobs"), "the bad one's end")
        one.celeriac.kill()
    (tmp_path / "go").touch()
    with serving(tmp_path, "two", file_ledger, "-j", "2"):
        until_ended(file_ledger, "jobs")
    order = [key for key, _ in begun(tmp_path)]
    assert states(file_ledger, "jobs") == {"success": 5, "failed": 1, "skipped": 2}
    assert [key for key in order if key in ("second", "last", "not")] == ["second", "last", "not"]
    assert order.index("second") > max(n for n, key in enumerate(order) if key == "first")


def test_a_task_that_needs_more_slots_than_there_are_fails_and_holds_nobody_up(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("wide", "true", slots=5, priority=9), job("narrow", "true"))
    with serving(tmp_path, "one", file_ledger, "-j", "2"):
        until_ended(file_ledger, "jobs")
    assert states(file_ledger, "jobs") == {"success": 1, "failed": 1}
    with RunStore(file_ledger) as opened:
        _, why = opened.task_states(1, ["wide"])["wide"]
    assert why == "it can never start here: slots: asks for 5 of 2; ask for fewer, or raise the parallelism"


def test_the_most_urgent_of_a_run_start_first(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, *(job(str(priority), "true", priority=priority) for priority in (1, 5, 3, 5, 2)[:3]))
    with serving(tmp_path, "one", file_ledger, "-j", "1"):
        until_ended(file_ledger, "jobs")
    assert [key for key, _ in begun(tmp_path)] == ["5", "3", "1"]


def test_explain_and_cancel_reach_it_at_its_desk_by_run_and_key(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"))
    with serving(tmp_path, "one", file_ledger):
        until(lambda: begun(tmp_path), "its start")
        told = run("explain", "jobs/a", "--json", cwd=tmp_path)
        cancelled = run("cancel", "jobs/a", "--wait", "20", cwd=tmp_path)
        until_ended(file_ledger, "jobs")
    (life,) = json.loads(told.out)["lives"]
    assert (life["key"], life["state"]) == ("jobs/a", "running")
    assert cancelled.status == 0
    assert states(file_ledger, "jobs") == {"revoked": 1}


# — calling back through the ledger —


def test_cancel_without_anybody_who_serves_ends_what_waits_at_once(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"), job("b"), job("c"))
    some = run("cancel", "--run", "jobs", "a", "nobody", "--ledger", file_ledger, cwd=tmp_path)
    rest = run("cancel", "--run", "jobs", "--ledger", file_ledger, cwd=tmp_path)
    again = run("cancel", "--run", "jobs", "--ledger", file_ledger, cwd=tmp_path)
    assert (some.status, some.out) == (1, "a: revoked while it waited\n")
    assert some.err == "celeriac: no task 'nobody' is waiting or in flight\n"
    assert (rest.status, rest.out) == (0, "run 'jobs': 2 tasks revoked\n")
    assert (again.status, again.err) == (1, "celeriac: run 'jobs' had already ended\n")
    assert ended(file_ledger, "jobs")


def test_cancel_through_the_ledger_ends_what_runs_and_what_waits(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, *(job(key) for key in ("a", "b", "c", "d")))
    with serving(tmp_path, "one", file_ledger, "-j", "1") as one:
        until(lambda: begun(tmp_path), "a start")
        some = run("cancel", "--run", "jobs", "a", "c", "--wait", "20", "--ledger", file_ledger, cwd=tmp_path)
        rest = run("cancel", "--run", "jobs", "--wait", "20", "--ledger", file_ledger, "--json", cwd=tmp_path)
        one.hears("run ended")
    assert some.status == 0
    assert some.out.splitlines()[1] == "c: revoked while it waited"
    assert rest.status == 0
    assert rest.summary["revoked"] == 2
    assert rest.summary["left"] == 0
    assert states(file_ledger, "jobs") == {"revoked": 4}


def test_a_run_that_is_called_back_while_it_is_loaded_ends_as_a_whole(tmp_path, file_ledger):
    with RunStore(file_ledger) as opened:
        tasks = [Task(key=f"k{n}", command="sleep 0.01") for n in range(30_000)]
        opened.submit("big", None, tasks, is_given=True)
    with serving(tmp_path, "one", file_ledger, "-j", "1") as one:
        until(lambda: one.taken("big"), "its taking")
        cancelled = run("cancel", "--run", "big", "--wait", "60", "--ledger", file_ledger, cwd=tmp_path)
        until_ended(file_ledger, "big")
    found = states(file_ledger, "big")
    assert cancelled.status == 0
    assert found["revoked"] > 20_000
    assert sum(found.values()) == 30_000


def test_what_is_out_when_its_serve_is_dead_is_called_back_by_the_next(tmp_path, ledger, redis):
    known = ("--broker", redis.url, "--backend", redis.url)
    with worker(tmp_path, (redis.url, redis.url), "--concurrency", "1"):
        submit(tmp_path, ledger, job("a"), job("b"))
        with serving(tmp_path, "one", ledger, *known) as one:
            until(lambda: begun(tmp_path), "a start")
            until(lambda: "running" in states(ledger, "jobs"), "a task that runs")
            one.celeriac.signal(signal.SIGTERM)
            assert one.ends() == 0
        cancelled = run("cancel", "--run", "jobs", "--ledger", ledger, cwd=tmp_path)
        with serving(tmp_path, "two", ledger, *known):
            until_ended(ledger, "jobs")
    assert cancelled.status == 0
    assert "no service owns this run" in cancelled.out
    assert states(ledger, "jobs") == {"revoked": 2}
    assert len(begun(tmp_path)) == 1


# — several on one ledger —


def test_when_one_of_two_is_killed_the_other_takes_over_and_nothing_runs_twice(tmp_path, ledger, urls):
    known = ("--broker", urls[0], "--backend", urls[1])
    keys = [f"k{n}" for n in range(40)]
    with (
        worker(tmp_path, urls, "--concurrency", "4"),
        serving(tmp_path, "one", ledger, *known) as one,
    ):
        submit(tmp_path, ledger, *(job(key) for key in keys))
        until(lambda: len(begun(tmp_path)) == 4, "four starts")
        with serving(tmp_path, "two", ledger, *known) as two:
            one.celeriac.kill()
            until(lambda: two.taken("jobs"), "the takeover", 60)
            (tmp_path / "go").touch()
            until_ended(ledger, "jobs")
    assert two.taken("jobs")[0]["taken_from"].startswith(f"process {one.celeriac.process.pid} on ")
    assert Counter(begun(tmp_path)) == Counter((key, 1) for key in keys)
    assert all_succeeded(ledger, "jobs", 40)


@pytest.mark.slow
def test_one_that_was_frozen_beyond_its_lease_begins_anew_and_starts_nothing_twice(tmp_path, ledger, redis):
    known = ("--broker", redis.url, "--backend", redis.url)
    keys = [f"k{n}" for n in range(20)]
    with (
        worker(tmp_path, (redis.url, redis.url), "--concurrency", "4"),
        serving(tmp_path, "one", ledger, *known) as one,
    ):
        submit(tmp_path, ledger, *(job(key) for key in keys))
        until(lambda: len(begun(tmp_path)) == 4, "four starts")
        with serving(tmp_path, "two", ledger, *known) as two:
            one.celeriac.signal(signal.SIGSTOP)
            until(lambda: two.taken("jobs"), "the takeover", 60)
            one.celeriac.signal(signal.SIGCONT)
            one.hears("lost ownership")
            (tmp_path / "go").touch()
            until_ended(ledger, "jobs")
            two.celeriac.signal(signal.SIGTERM)
            assert two.ends() == 0
        submit(tmp_path, ledger, job("after", "true"), name="after")
        until_ended(ledger, "after")
        assert len(one.taken("after")) == 1
    assert Counter(begun(tmp_path)) == Counter([("after", 1), *((key, 1) for key in keys)])
    assert all_succeeded(ledger, "jobs", 20)


def test_one_that_has_lost_its_ledger_ends_what_it_runs_itself_and_begins_anew(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"))
    with serving(tmp_path, "one", file_ledger) as one:
        until(lambda: begun(tmp_path), "its start")
        with RunStore(file_ledger) as opened, opened.database.writing() as connection:
            connection.exec_driver_sql("DELETE FROM celeriac_owner")
        one.hears("lost ownership")
        until(lambda: len(begun(tmp_path)) == 2, "its second start")
        assert len(one.celeriac.groups_with(GATE)) == 1
        (tmp_path / "go").touch()
        until_ended(file_ledger, "jobs")
        one.celeriac.signal(signal.SIGTERM)
        assert one.ends() == 0
        assert one.celeriac.alive() == []
    assert all_succeeded(file_ledger, "jobs", 1)


def test_a_submitted_run_is_not_resumed_by_run(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a", "true"))
    resumed = run("run", "jobs.jsonl", "--resume", "--ledger", file_ledger, "--json", cwd=tmp_path)
    assert resumed.summary["run"] == "jobs-2"
    assert states(file_ledger, "jobs") == {"waiting": 1}


@pytest.fixture(params=["redis", slow("rabbit")])
def urls(request, postgres) -> tuple[str, str]:
    """Of a broker and of a result backend."""
    server = request.getfixturevalue(request.param)
    return server.url, postgres.url if request.param == "rabbit" else server.url


def test_what_is_out_stays_out_when_serve_is_told_to_go(tmp_path, ledger, urls):
    known = ("--broker", urls[0], "--backend", urls[1])
    with worker(tmp_path, urls, "--concurrency", "2"):
        submit(tmp_path, ledger, *(job(key) for key in ("a", "b", "c", "d", "e")))
        with serving(tmp_path, "one", ledger, *known) as one:
            until(lambda: len(begun(tmp_path)) == 2, "two starts")
            one.celeriac.signal(signal.SIGTERM)
            assert one.ends() == 0
        assert "revoked" not in states(ledger, "jobs")
        (tmp_path / "go").touch()
        with serving(tmp_path, "two", ledger, *known):
            until_ended(ledger, "jobs")
    assert all_succeeded(ledger, "jobs", 5)
    assert Counter(begun(tmp_path)) == Counter((key, 1) for key in ("a", "b", "c", "d", "e"))


def test_a_frozen_ledger_holds_up_what_is_to_start_and_nothing_else(tmp_path, ledger, postgres, redis):
    known = ("--broker", redis.url, "--backend", redis.url)
    with worker(tmp_path, (redis.url, redis.url), "--concurrency", "1"):
        submit(tmp_path, ledger, *(job(key) for key in ("a", "b", "c")))
        with serving(tmp_path, "one", ledger, *known) as one, serving(tmp_path, "two", ledger, *known) as two:
            until(lambda: begun(tmp_path), "a start")
            postgres.freeze()
            try:
                for each in (one, two):
                    each.hears("the ledger")
                two.celeriac.signal(signal.SIGTERM)
                assert two.ends() == 0
            finally:
                postgres.thaw()
            (tmp_path / "go").touch()
            until_ended(ledger, "jobs")
    assert all_succeeded(ledger, "jobs", 3)
    assert Counter(begun(tmp_path)) == Counter((key, 1) for key in ("a", "b", "c"))


def test_of_several_that_look_at_once_each_takes_other_runs(ledger):
    with RunStore(ledger) as submitting:
        for n in range(60):
            submitting.submit(f"r{n}", None, [Task(key="k", command="true")], is_given=True)
    taken: list[list[str]] = [[], [], [], []]
    start = threading.Barrier(len(taken))

    def take(mine: list[str]) -> None:
        with RunStore(ledger, timeout=10.0) as opened:
            shelf = opened.owned_runs()
            start.wait()
            for _ in range(3):
                mine += [run.name for run in shelf.take(from_dead=True)]
            start.wait()

    threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for mine in taken for name in mine) == sorted(f"r{n}" for n in range(60))


# — the ledger —


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request) -> str:
    return str(request.getfixturevalue("file_ledger" if request.param == "sqlite" else "ledger"))


def test_a_run_that_is_still_being_written_is_nobodys(either):
    with RunStore(either) as opened:
        name = opened.submit("half", None, [Task(key="k", command="true")], is_given=True)
        with opened.database.writing() as connection:
            connection.execute(RUNS.update().values(total=None))
        shelf = opened.owned_runs()
        assert not shelf.pending_work().has_idle_runs
        assert shelf.take(from_dead=True) == []
        with opened.database.writing() as connection:
            connection.execute(RUNS.update().values(total=1))
        assert shelf.pending_work().has_idle_runs
        assert [run.name for run in shelf.take(from_dead=True)] == [name]


KILLED_WHILE_IT_WRITES = """
import os, signal
from celeriac.ledger import submit
from celeriac.ledger.run_store import RunStore
from celeriac.task.task import Task

def put(connection, table, rows, written=[]):
    written += rows
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    put_in_earnest(connection, table, rows)

submit.BATCH_SIZE, submit.insert_rows, put_in_earnest = 1, put, submit.insert_rows
with RunStore({ledger!r}) as opened:
    opened.submit("half", None, [Task(key=str(n), command="true") for n in range(3)], is_given=True)
"""


def test_what_a_killed_submit_leaves_is_nobodys_and_can_be_removed(tmp_path, file_ledger):
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_IT_WRITES.format(ledger=file_ledger)])
    assert killed.returncode == -signal.SIGKILL
    with RunStore(file_ledger) as opened:
        assert opened.owned_runs().take(from_dead=True) == []
    known = ("--ledger", file_ledger)
    [half] = json.loads(run("runs", "--json", *known, cwd=tmp_path).out)
    assert (half["state"], half["waiting"]) == ("interrupted", 1)
    assert "1 run removed" in run("prune", "--run", "half", *known, cwd=tmp_path).out
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        for table in ("run", "task", "owner"):
            assert connection.execute(f"SELECT count(*) FROM celeriac_{table}").fetchone() == (0,)


def test_a_run_that_is_being_written_is_at_work_and_then_it_waits(either):
    with RunStore(either) as opened:
        owner = opened.owner
        number = opened.database.write(lambda connection: insert_submission(connection, owner, "half", None))
        run = find_run(opened.database, "half")
        assert (run.state, reason_to_keep(run, PruneFilter())) == (RunState.RUNNING, f"is running in {run.owner}")
        write_tasks(opened.database, owner, number, [Task(key="k", command="true")])
        run = find_run(opened.database, "half")
        assert (run.state, run.counts) == (RunState.SUBMITTED, Counts(waiting=1))


def test_a_submission_whose_last_answer_was_lost_takes_nothing_from_who_has_the_run_by_now(either, monkeypatch):
    with RunStore(either) as opened, RunStore(either) as other:
        shelf, write = other.owned_runs(), opened.database.write
        taken: list[OwnedRun] = []

        def deaf(work):
            said = write(work)
            if not taken:
                taken.extend(shelf.take(from_dead=False))
                if taken:
                    raise LedgerUnavailable(opened.database.masked_url, "has gone before it answered")
            return said

        monkeypatch.setattr(opened.database, "write", deaf)
        name = opened.submit("jobs", None, [Task(key="k", command="true")], is_given=True)
        assert find_run(opened.database, name).state is RunState.RUNNING
        monkeypatch.undo()


def test_a_submission_that_fails_leaves_nothing(either):
    with RunStore(either) as opened:
        tasks = [Task(key="k", command="true"), Task(key="bad\0", command="true")]
        with pytest.raises(ValueError, match="cannot be stored"):
            opened.submit("bad", None, tasks, is_given=True)
        assert opened.find_run("bad") is None


def test_a_shelf_loads_what_waits_in_pieces_the_most_urgent_first(either, monkeypatch):
    monkeypatch.setattr("celeriac.ledger.owned_runs.BATCH_SIZE", 3)
    tasks = [Task(key=f"{n}", command="true", priority=n % 4) for n in range(20)]
    with RunStore(either) as opened:
        opened.submit("r", None, tasks, is_given=True)
        shelf = opened.owned_runs()
        (taken,) = shelf.take(from_dead=True)
        pieces = load_all(shelf, taken)
    loaded = [each for piece in pieces for each in piece]
    assert loaded == [task.key for task in sorted(tasks, key=lambda task: -task.priority)]
    assert max(map(len, pieces)) == 3


def load_all(shelf: OwnedRuns, taken) -> list[list[str]]:
    pieces = []
    while not taken.is_loaded:
        pieces.append([run_key(each.task.key).key for each in shelf.load(taken)])
    return pieces


def test_a_run_of_which_nothing_is_left_ends_when_it_is_taken(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"))
    with RunStore(file_ledger) as opened:
        with opened.database.writing() as connection:
            connection.exec_driver_sql("UPDATE celeriac_task SET state = 'success'")
        assert [run.name for run in opened.submitted_runs()] == ["jobs"]
    with serving(tmp_path, "one", file_ledger) as one:
        until_ended(file_ledger, "jobs")
        one.hears("run ended")
    assert one.lines("run ended")[0]["earlier"] == 1


def test_who_was_taken_over_writes_nothing_more(ledger):
    with RunStore(ledger) as one, RunStore(ledger) as other:
        one.submit("r", None, [Task(key="k", command="true")], is_given=True)
        shelf = one.owned_runs()
        shelf.take(from_dead=True)
        with other.database.writing() as connection:
            connection.exec_driver_sql("UPDATE celeriac_owner SET until = 0")
        (taken,) = other.owned_runs().take(from_dead=True)
        assert taken.previous_owner == f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(LedgerLost):
            shelf.take(from_dead=True)


# — bad input —


def test_a_file_with_mistakes_is_refused_as_a_whole(tmp_path, file_ledger):
    file = jobs(tmp_path, job("a"), {"key": "b", "comand": "true"}, job("a"))
    refused = run("submit", file, "--ledger", file_ledger, cwd=tmp_path)
    assert refused.status == 2
    assert [line.split(":")[1] for line in refused.err.splitlines()] == ["2", "2", "3"]
    assert not Path(tmp_path / "ledger.db").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("submit", "none.jsonl"), "none.jsonl: there is no such file"),
        (("submit", "jobs.jsonl", "--ledger", "none"), "ledger: this command needs one"),
        (("submit", "jobs.jsonl", "--retries", "-1"), "retries: -1 is not a whole number"),
        (("serve", "--ledger", "none"), "ledger: this command needs one"),
        (("serve", "--ledger", "postgresql+psycopg://nobody@127.0.0.1:1/none"), "cannot be used"),
        (("serve", "--grace", "soon"), "--grace: 'soon' is not a number of seconds"),
        (("serve", "--broker", "redis://127.0.0.1:1", "--output", "out"), "--output: output is kept by the workers"),
        (("cancel", "--run", "nobody"), "--run: there is no run 'nobody'"),
        (("cancel", "--run", "nobody", "--queue", "q"), "--run takes KEYs"),
        (("cancel", "key", "--ledger", "x.db"), "--ledger goes with --run"),
    ],
)
def test_bad_input_is_status_2(words, said, tmp_path):
    jobs(tmp_path, job("a"))
    with RunStore(f"sqlite:///{tmp_path}/x.db"):
        pass
    given = words if "--ledger" in words or "key" in words else (*words, "--ledger", "x.db")
    ended = run(*given, cwd=tmp_path)
    assert ended.status == 2
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_name_that_is_taken_is_refused(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"))
    ended = run("submit", "jobs.jsonl", "--name", "jobs", "--ledger", file_ledger, cwd=tmp_path)
    assert (ended.status, ended.err) == (
        2,
        "celeriac: name: there is already a run 'jobs'; give another name\n",
    )


def test_a_ledger_on_a_server_is_served_with_a_broker_alone(tmp_path, ledger):
    ended = run("serve", "--ledger", ledger, cwd=tmp_path)
    assert (ended.status, ended.err.count("a ledger on a server needs a broker")) == (2, 1)


def test_a_run_at_work_elsewhere_takes_no_orders_through_the_ledger(tmp_path, file_ledger):
    with started("run", jobs(tmp_path, job("a")), "--ledger", file_ledger, cwd=tmp_path):
        until(lambda: begun(tmp_path), "its start")
        ended = run("cancel", "--run", "jobs", "--ledger", file_ledger, cwd=tmp_path)
    assert ended.status == 2
    assert "takes no orders through the ledger; give the KEY without --run" in ended.err
