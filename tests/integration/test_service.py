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
from celeriac.ledger.counts import Counts
from celeriac.ledger.owned_run import OwnedRun, run_key
from celeriac.ledger.owned_runs import OwnedRuns
from celeriac.ledger.prune import PruneFilter, reason_to_keep
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schema import RUNS
from celeriac.ledger.submit import insert_submission, write_tasks
from celeriac.ledger.views import RunState, find_run
from celeriac.task.task import Task
from tests.support.cli_runner import jobs, run, started, until
from tests.support.long import slow
from tests.support.service_host import (
    WAIT_FOR_GO,
    all_succeeded,
    has_ended,
    job,
    postgres_ledger,
    run_states,
    running_service,
    starts,
    submit,
    wait_until_ended,
)
from tests.support.workers import worker


@pytest.fixture
def ledger(postgres) -> str:
    return postgres_ledger(postgres, f"ledger_{uuid4().hex}")


@pytest.fixture
def file_ledger(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


# — on one machine —


def test_a_run_that_is_submitted_before_the_service_starts_runs_then(tmp_path, file_ledger):
    name = submit(tmp_path, file_ledger, job("a", "echo said"), job("b", "true"))
    shown = json.loads(run("status", "--ledger", file_ledger, "--json", cwd=tmp_path).out)
    with running_service(tmp_path, "one", file_ledger, "--output", "out") as one:
        wait_until_ended(file_ledger, name)
        one.wait_for_log("run ended")
    assert name == "jobs"
    assert [(row["name"], row["owner"], row["waiting"]) for row in shown["runs"]] == [("jobs", None, 2)]
    assert all_succeeded(file_ledger, name, 2)
    assert sorted(starts(tmp_path)) == [("a", 1), ("b", 1)]
    assert (tmp_path / "out" / "jobs%2Fa.out").read_text() == "said\n"
    (line,) = one.log_lines("run ended")
    assert (line["run"], line["success"], line["failed"]) == ("jobs", 2, 0)


def test_a_service_removes_old_runs_and_runs_what_was_submitted_long_ago(tmp_path, file_ledger):
    old = submit(tmp_path, file_ledger, job("a", "true"), name="old")
    with running_service(tmp_path, "one", file_ledger):
        wait_until_ended(file_ledger, old)
    waiting = submit(tmp_path, file_ledger, job("b", "true"), name="waiting")
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database, database:
        database.execute("UPDATE celeriac_run SET created = 1, ended = CASE WHEN ended IS NULL THEN NULL ELSE 2 END")
    with running_service(tmp_path, "two", file_ledger) as two:
        two.wait_for_log("the ledger keeps 90 days or 2 GB: 1 older runs were removed")
        wait_until_ended(file_ledger, waiting)
        with RunStore(file_ledger, must_exist=True) as opened:
            assert opened.find_run(old) is None


def test_submit_with_wait_has_the_exit_status_of_run(tmp_path, file_ledger):
    good, bad = (
        jobs(tmp_path, job("a", "true"), name="good.jsonl"),
        jobs(tmp_path, job("b", "exit 3"), name="bad.jsonl"),
    )
    with running_service(tmp_path, "one", file_ledger):
        well = run("submit", good, "--ledger", file_ledger, "--wait", cwd=tmp_path)
        badly = run("submit", bad, "--ledger", file_ledger, "--wait", "--json", cwd=tmp_path)
        again = run("submit", good, "--ledger", file_ledger, cwd=tmp_path)
    assert (well.status, well.out) == (0, "good\n")
    assert badly.status == 1
    assert badly.summary == {
        "run": "bad", "tasks": 1, "succeeded": 0, "failed": 1, "revoked": 0, "skipped": 0, "exit_status": 1,
    }  # fmt: skip
    assert again.out == "good-2\n"


def test_an_interrupt_ends_the_wait_but_not_the_run(tmp_path, file_ledger):
    file = jobs(tmp_path, job("a"))
    with (
        running_service(tmp_path, "one", file_ledger),
        started("submit", file, "--ledger", file_ledger, "--wait", cwd=tmp_path) as waiting,
    ):
        until(lambda: starts(tmp_path), "the start of the task")
        waiting.signal(signal.SIGINT)
        interrupted = waiting.wait()
        (tmp_path / "go").touch()
        wait_until_ended(file_ledger, "jobs")
    assert interrupted.status == 130
    assert "run jobs goes on" in interrupted.err
    assert all_succeeded(file_ledger, "jobs", 1)


def test_a_terminated_service_finishes_running_tasks_and_leaves_the_rest(tmp_path, file_ledger):
    tasks = [job("first"), job("fails", WAIT_FOR_GO + "; exit 1", retries=3, retry_delay=0.01), job("last", "true")]
    submit(tmp_path, file_ledger, *tasks)
    with running_service(tmp_path, "one", file_ledger, "-j", "2") as one:
        until(lambda: len(starts(tmp_path)) == 2, "two starts")
        one.celeriac.signal(signal.SIGTERM)
        one.wait_for_log("stopping")
        (tmp_path / "go").touch()
        status = one.wait_for_end()
        assert one.celeriac.alive() == []
    left = run_states(file_ledger, "jobs")
    with running_service(tmp_path, "two", file_ledger) as two:
        wait_until_ended(file_ledger, "jobs")
        assert two.runs_taken("jobs")[0].get("taken_from") is None
    assert status == 0
    assert left == {"success": 1, "waiting": 2}
    assert run_states(file_ledger, "jobs") == {"success": 2, "failed": 1}
    assert Counter(starts(tmp_path)) == Counter(
        [("first", 1), ("last", 1), *(("fails", attempt) for attempt in (1, 2, 3, 4))]
    )


def test_a_command_that_outlasts_the_grace_period_is_killed_and_runs_again(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("long"))
    with running_service(tmp_path, "one", file_ledger, "--grace", "0.2") as one:
        until(lambda: starts(tmp_path), "the start of the task")
        one.celeriac.signal(signal.SIGTERM)
        assert one.wait_for_end() == 0
        assert one.celeriac.alive() == []
    (tmp_path / "go").touch()
    with running_service(tmp_path, "two", file_ledger):
        wait_until_ended(file_ledger, "jobs")
    assert all_succeeded(file_ledger, "jobs", 1)
    assert starts(tmp_path) == [("long", 1), ("long", 2)]


def test_the_next_service_takes_over_from_a_killed_one(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, *(job(f"k{n}", "true") for n in range(50)), job("gated", priority=1))
    with running_service(tmp_path, "one", file_ledger, "-j", "1") as one:
        until(lambda: starts(tmp_path), "a start")
        one.celeriac.kill()
        (tmp_path / "go").touch()
        with running_service(tmp_path, "two", file_ledger) as two:
            wait_until_ended(file_ledger, "jobs")
    assert two.runs_taken("jobs")[0]["taken_from"].startswith(f"process {one.celeriac.process.pid} on ")
    assert all_succeeded(file_ledger, "jobs", 51)
    assert Counter(starts(tmp_path)) == Counter([("gated", 1), ("gated", 2), *((f"k{n}", 1) for n in range(50))])


def test_without_a_broker_a_second_service_waits_for_the_first(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"))
    with running_service(tmp_path, "one", file_ledger) as one:
        until(lambda: starts(tmp_path), "the start of the task")
        with (
            running_service(tmp_path, "second", file_ledger) as second,
            running_service(tmp_path, "third", file_ledger) as third,
        ):
            second.wait_for_log("waiting until the commands")
            second.celeriac.signal(signal.SIGTERM)
            assert second.wait_for_end() == 0
            one.celeriac.kill()
            (tmp_path / "go").touch()
            wait_until_ended(file_ledger, "jobs")
            assert len(third.runs_taken("jobs")) == 1
    assert starts(tmp_path) == [("a", 1), ("a", 2)]


def test_needs_are_respected_across_services(tmp_path, file_ledger):
    tasks = [
        job("last", "true", needs=["second", "good"], priority=9),
        job("second", "true", needs="first", priority=8),
        job("first", WAIT_FOR_GO, priority=1),
        job("good", "true"),
        job("bad", "exit 1", priority=5),
        job("skipped", "true", needs="bad"),
        job("also", "true", needs="skipped"),
        job("not", "true", needs=["bad", "last"], on_need_failed="run"),
    ]
    submit(tmp_path, file_ledger, *tasks)
    with running_service(tmp_path, "one", file_ledger, "-j", "2") as one:
        until(lambda: run_states(file_ledger, "jobs").get("success") == 1, "the good one's end")
        until(lambda: "failed" in run_states(file_ledger, "jobs"), "the bad one's end")
        one.celeriac.kill()
    (tmp_path / "go").touch()
    with running_service(tmp_path, "two", file_ledger, "-j", "2"):
        wait_until_ended(file_ledger, "jobs")
    order = [key for key, _ in starts(tmp_path)]
    assert run_states(file_ledger, "jobs") == {"success": 5, "failed": 1, "skipped": 2}
    assert [key for key in order if key in ("second", "last", "not")] == ["second", "last", "not"]
    assert order.index("second") > max(n for n, key in enumerate(order) if key == "first")


def test_a_service_shares_its_resources_and_fails_a_task_that_needs_more(tmp_path, file_ledger):
    show = "echo $CELERIAC_KEY $CUDA_VISIBLE_DEVICES >> starts; sleep 0.1"
    submit(tmp_path, file_ledger, job("wide", "true", gpus=2), *(job(key, show, gpus=1) for key in "ab"))
    with running_service(tmp_path, "one", file_ledger, "-j", "2", "--gpus", "1"):
        wait_until_ended(file_ledger, "jobs")
    assert run_states(file_ledger, "jobs") == {"success": 2, "failed": 1}
    assert sorted((tmp_path / "starts").read_text().splitlines()) == ["jobs/a 0", "jobs/b 0"]
    with RunStore(file_ledger) as opened:
        _, why = opened.task_states(1, ["wide"])["wide"]
    assert str(why).startswith("it can never start here: gpus: asks for 2 GPUs, and there are 1; ")


def test_a_task_with_too_many_slots_fails_and_does_not_block_others(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("wide", "true", slots=5, priority=9), job("narrow", "true"))
    with running_service(tmp_path, "one", file_ledger, "-j", "2"):
        wait_until_ended(file_ledger, "jobs")
    assert run_states(file_ledger, "jobs") == {"success": 1, "failed": 1}
    with RunStore(file_ledger) as opened:
        _, why = opened.task_states(1, ["wide"])["wide"]
    assert why == "it can never start here: slots: asks for 5 of 2; ask for fewer, or raise the parallelism"


def test_the_most_urgent_tasks_of_a_run_start_first(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, *(job(str(priority), "true", priority=priority) for priority in (1, 5, 3, 5, 2)[:3]))
    with running_service(tmp_path, "one", file_ledger, "-j", "1"):
        wait_until_ended(file_ledger, "jobs")
    assert [key for key, _ in starts(tmp_path)] == ["5", "3", "1"]


def test_explain_and_cancel_reach_the_service_by_run_and_key(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"))
    with running_service(tmp_path, "one", file_ledger):
        until(lambda: starts(tmp_path), "the start of the task")

        def explained() -> list[tuple[str, str]]:
            lives = json.loads(run("explain", "jobs/a", "--json", cwd=tmp_path).out)["lives"]
            return [(life["key"], life["state"]) for life in lives]

        until(lambda: explained() == [("jobs/a", "running")], "the state of the task")
        cancelled = run("cancel", "jobs/a", "--wait", "60", cwd=tmp_path)
        wait_until_ended(file_ledger, "jobs")
    assert cancelled.status == 0
    assert run_states(file_ledger, "jobs") == {"revoked": 1}


# — cancelling through the ledger —


def test_cancel_revokes_waiting_tasks_at_once_if_no_service_owns_the_run(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"), job("b"), job("c"))
    first = run("cancel", "--run", "jobs", "a", "unknown", "--ledger", file_ledger, cwd=tmp_path)
    second = run("cancel", "--run", "jobs", "--ledger", file_ledger, cwd=tmp_path)
    again = run("cancel", "--run", "jobs", "--ledger", file_ledger, cwd=tmp_path)
    assert (first.status, first.out) == (1, "a: revoked while it waited\n")
    assert first.err == "celeriac: no task 'unknown' is waiting or in flight\n"
    assert (second.status, second.out) == (0, "run 'jobs': 2 tasks revoked\n")
    assert (again.status, again.err) == (1, "celeriac: run 'jobs' had already ended\n")
    assert has_ended(file_ledger, "jobs")


def test_cancel_through_the_ledger_ends_running_and_waiting_tasks(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, *(job(key) for key in ("a", "b", "c", "d")))
    with running_service(tmp_path, "one", file_ledger, "-j", "1") as one:
        until(lambda: starts(tmp_path), "a start")
        first = run("cancel", "--run", "jobs", "a", "c", "--wait", "60", "--ledger", file_ledger, cwd=tmp_path)
        second = run("cancel", "--run", "jobs", "--wait", "60", "--ledger", file_ledger, "--json", cwd=tmp_path)
        one.wait_for_log("run ended")
    assert first.status == 0
    assert first.out.splitlines()[1] == "c: revoked while it waited"
    assert second.status == 0
    assert second.summary["revoked"] == 2
    assert second.summary["left"] == 0
    assert run_states(file_ledger, "jobs") == {"revoked": 4}


def test_a_run_that_is_cancelled_while_it_is_loaded_ends_completely(tmp_path, file_ledger):
    with RunStore(file_ledger) as opened:
        tasks = [Task(key=f"k{n}", command="sleep 0.01") for n in range(30_000)]
        opened.submit("big", None, tasks, is_given=True)
    with running_service(tmp_path, "one", file_ledger, "-j", "1") as one:
        until(lambda: one.runs_taken("big"), "that the run is taken")
        cancelled = run("cancel", "--run", "big", "--wait", "60", "--ledger", file_ledger, cwd=tmp_path)
        wait_until_ended(file_ledger, "big")
    counts = run_states(file_ledger, "big")
    assert cancelled.status == 0
    assert counts["revoked"] > 20_000
    assert sum(counts.values()) == 30_000


def test_the_next_service_cancels_the_tasks_in_flight_of_a_dead_one(tmp_path, ledger, redis):
    options = ("--broker", redis.url, "--backend", redis.url)
    with worker(tmp_path, (redis.url, redis.url), "--concurrency", "1"):
        submit(tmp_path, ledger, job("a"), job("b"))
        with running_service(tmp_path, "one", ledger, *options) as one:
            until(lambda: starts(tmp_path), "a start")
            until(lambda: "running" in run_states(ledger, "jobs"), "a task that runs")
            one.celeriac.signal(signal.SIGTERM)
            assert one.wait_for_end() == 0
        cancelled = run("cancel", "--run", "jobs", "--ledger", ledger, cwd=tmp_path)
        with running_service(tmp_path, "two", ledger, *options):
            wait_until_ended(ledger, "jobs")
    assert cancelled.status == 0
    assert "no service owns this run" in cancelled.out
    assert run_states(ledger, "jobs") == {"revoked": 2}
    assert len(starts(tmp_path)) == 1


# — several on one ledger —


def test_a_service_takes_over_from_a_killed_one_and_no_task_runs_twice(tmp_path, ledger, urls):
    options = ("--broker", urls[0], "--backend", urls[1])
    keys = [f"k{n}" for n in range(40)]
    with (
        worker(tmp_path, urls, "--concurrency", "4"),
        running_service(tmp_path, "one", ledger, *options) as one,
    ):
        submit(tmp_path, ledger, *(job(key) for key in keys))
        until(lambda: len(starts(tmp_path)) == 4, "four starts")
        with running_service(tmp_path, "two", ledger, *options) as two:
            one.celeriac.kill()
            until(lambda: two.runs_taken("jobs"), "the takeover", 60)
            (tmp_path / "go").touch()
            wait_until_ended(ledger, "jobs")
    assert two.runs_taken("jobs")[0]["taken_from"].startswith(f"process {one.celeriac.process.pid} on ")
    assert Counter(starts(tmp_path)) == Counter((key, 1) for key in keys)
    assert all_succeeded(ledger, "jobs", 40)


@pytest.mark.slow
def test_a_service_frozen_beyond_its_lease_registers_again_and_starts_no_task_twice(tmp_path, ledger, redis):
    options = ("--broker", redis.url, "--backend", redis.url)
    keys = [f"k{n}" for n in range(20)]
    with (
        worker(tmp_path, (redis.url, redis.url), "--concurrency", "4"),
        running_service(tmp_path, "one", ledger, *options) as one,
    ):
        submit(tmp_path, ledger, *(job(key) for key in keys))
        until(lambda: len(starts(tmp_path)) == 4, "four starts")
        with running_service(tmp_path, "two", ledger, *options) as two:
            one.celeriac.signal(signal.SIGSTOP)
            until(lambda: two.runs_taken("jobs"), "the takeover", 60)
            one.celeriac.signal(signal.SIGCONT)
            one.wait_for_log("lost ownership")
            (tmp_path / "go").touch()
            wait_until_ended(ledger, "jobs")
            two.celeriac.signal(signal.SIGTERM)
            assert two.wait_for_end() == 0
        submit(tmp_path, ledger, job("after", "true"), name="after")
        wait_until_ended(ledger, "after")
        assert len(one.runs_taken("after")) == 1
    assert Counter(starts(tmp_path)) == Counter([("after", 1), *((key, 1) for key in keys)])
    assert all_succeeded(ledger, "jobs", 20)


def test_a_service_that_lost_its_ownership_ends_its_commands_and_registers_again(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"))
    with running_service(tmp_path, "one", file_ledger) as one:
        until(lambda: starts(tmp_path), "the start of the task")
        with RunStore(file_ledger) as opened, opened.database.writing() as connection:
            connection.exec_driver_sql("DELETE FROM celeriac_owner")
        one.wait_for_log("lost ownership")
        until(lambda: len(starts(tmp_path)) == 2, "its second start")
        assert len(one.celeriac.groups_with(WAIT_FOR_GO)) == 1
        (tmp_path / "go").touch()
        wait_until_ended(file_ledger, "jobs")
        one.celeriac.signal(signal.SIGTERM)
        assert one.wait_for_end() == 0
        assert one.celeriac.alive() == []
    assert all_succeeded(file_ledger, "jobs", 1)


def test_a_submitted_run_is_not_resumed_by_run(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a", "true"))
    resumed = run("run", "jobs.jsonl", "--resume", "--ledger", file_ledger, "--json", cwd=tmp_path)
    assert resumed.summary["run"] == "jobs-2"
    assert run_states(file_ledger, "jobs") == {"waiting": 1}


@pytest.fixture(params=["redis", slow("rabbit")])
def urls(request, postgres) -> tuple[str, str]:
    """Return the URLs of a broker and a result backend."""
    server = request.getfixturevalue(request.param)
    return server.url, postgres.url if request.param == "rabbit" else server.url


def test_tasks_in_flight_stay_in_flight_when_a_service_is_terminated(tmp_path, ledger, urls):
    options = ("--broker", urls[0], "--backend", urls[1])
    with worker(tmp_path, urls, "--concurrency", "2"):
        submit(tmp_path, ledger, *(job(key) for key in ("a", "b", "c", "d", "e")))
        with running_service(tmp_path, "one", ledger, *options) as one:
            until(lambda: len(starts(tmp_path)) == 2, "two starts")
            one.celeriac.signal(signal.SIGTERM)
            assert one.wait_for_end() == 0
        assert "revoked" not in run_states(ledger, "jobs")
        (tmp_path / "go").touch()
        with running_service(tmp_path, "two", ledger, *options):
            wait_until_ended(ledger, "jobs")
    assert all_succeeded(ledger, "jobs", 5)
    assert Counter(starts(tmp_path)) == Counter((key, 1) for key in ("a", "b", "c", "d", "e"))


def test_a_frozen_ledger_delays_new_tasks_only(tmp_path, ledger, postgres, redis):
    options = ("--broker", redis.url, "--backend", redis.url)
    with worker(tmp_path, (redis.url, redis.url), "--concurrency", "1"):
        submit(tmp_path, ledger, *(job(key) for key in ("a", "b", "c")))
        with (
            running_service(tmp_path, "one", ledger, *options) as one,
            running_service(tmp_path, "two", ledger, *options) as two,
        ):
            until(lambda: starts(tmp_path), "a start")
            postgres.freeze()
            try:
                for each in (one, two):
                    each.wait_for_log("the ledger")
                two.celeriac.signal(signal.SIGTERM)
                assert two.wait_for_end() == 0
            finally:
                postgres.thaw()
            (tmp_path / "go").touch()
            wait_until_ended(ledger, "jobs")
    assert all_succeeded(ledger, "jobs", 3)
    assert Counter(starts(tmp_path)) == Counter((key, 1) for key in ("a", "b", "c"))


def test_services_that_look_at_the_same_time_take_different_runs(ledger):
    with RunStore(ledger) as submitting:
        for n in range(60):
            submitting.submit(f"r{n}", None, [Task(key="k", command="true")], is_given=True)
    taken: list[list[str]] = [[], [], [], []]
    start = threading.Barrier(len(taken))

    def take(names: list[str]) -> None:
        with RunStore(ledger, timeout=10.0) as opened:
            owned = opened.owned_runs()
            start.wait()
            for _ in range(3):
                names += [run.name for run in owned.take(from_dead=True)]
            start.wait()

    threads = [threading.Thread(target=take, args=(names,)) for names in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for names in taken for name in names) == sorted(f"r{n}" for n in range(60))


# — the ledger —


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request) -> str:
    return str(request.getfixturevalue("file_ledger" if request.param == "sqlite" else "ledger"))


def test_a_run_that_is_still_being_written_is_not_taken(either):
    with RunStore(either) as opened:
        name = opened.submit("half", None, [Task(key="k", command="true")], is_given=True)
        with opened.database.writing() as connection:
            connection.execute(RUNS.update().values(total=None))
        owned = opened.owned_runs()
        assert not owned.pending_work().has_idle_runs
        assert owned.take(from_dead=True) == []
        with opened.database.writing() as connection:
            connection.execute(RUNS.update().values(total=1))
        assert owned.pending_work().has_idle_runs
        assert [run.name for run in owned.take(from_dead=True)] == [name]


def test_a_repeated_acknowledgement_deletes_no_later_request_with_the_same_id(either):
    with RunStore(either) as opened:
        opened.submit("jobs", None, [Task(key=key, command="true") for key in "ab"], is_given=True)
        owned = opened.owned_runs()
        (taken,) = owned.take(from_dead=True)
        opened.cancel(taken.id, "jobs", ["a"])
        handled = owned.pending_work().requests
        owned.acknowledge(handled)
        opened.cancel(taken.id, "jobs", ["b"])
        owned.acknowledge(handled)  # as after a lost reply
        assert [request.key for request in owned.pending_work().requests] == ["b"]


KILLED_WHILE_WRITING = """
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


def test_the_run_of_a_killed_submit_is_not_taken_and_can_be_pruned(tmp_path, file_ledger):
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING.format(ledger=file_ledger)])
    assert killed.returncode == -signal.SIGKILL
    with RunStore(file_ledger) as opened:
        assert opened.owned_runs().take(from_dead=True) == []
    options = ("--ledger", file_ledger)
    [half] = json.loads(run("runs", "--json", *options, cwd=tmp_path).out)
    assert (half["state"], half["waiting"]) == ("interrupted", 1)
    assert "1 run removed" in run("prune", "--run", "half", *options, cwd=tmp_path).out
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        for table in ("run", "task", "owner"):
            assert connection.execute(f"SELECT count(*) FROM celeriac_{table}").fetchone() == (0,)


def test_a_run_that_is_being_written_is_running_and_then_submitted(either):
    with RunStore(either) as opened:
        owner = opened.owner
        number = opened.database.write(lambda connection: insert_submission(connection, owner, "half", None))
        run = find_run(opened.database, "half")
        assert (run.state, reason_to_keep(run, PruneFilter())) == (RunState.RUNNING, f"is running in {run.owner}")
        write_tasks(opened.database, owner, number, [Task(key="k", command="true")])
        run = find_run(opened.database, "half")
        assert (run.state, run.counts) == (RunState.SUBMITTED, Counts(waiting=1))


def test_submit_does_not_steal_a_run_after_a_lost_reply(either, monkeypatch):
    with RunStore(either) as opened, RunStore(either) as other:
        owned, write = other.owned_runs(), opened.database.write
        taken: list[OwnedRun] = []

        def write_without_reply(work):
            reply = write(work)
            if not taken:
                taken.extend(owned.take(from_dead=False))
                if taken:
                    raise LedgerUnavailable(opened.database.masked_url, "has gone before it answered")
            return reply

        monkeypatch.setattr(opened.database, "write", write_without_reply)
        name = opened.submit("jobs", None, [Task(key="k", command="true")], is_given=True)
        assert find_run(opened.database, name).state is RunState.RUNNING
        monkeypatch.undo()


def test_a_failed_submission_leaves_no_run(either):
    with RunStore(either) as opened:
        tasks = [Task(key="k", command="true"), Task(key="bad\0", command="true")]
        with pytest.raises(ValueError, match="cannot be stored"):
            opened.submit("bad", None, tasks, is_given=True)
        assert opened.find_run("bad") is None


def test_waiting_tasks_are_loaded_in_batches_the_most_urgent_first(either, monkeypatch):
    monkeypatch.setattr("celeriac.ledger.owned_runs.BATCH_SIZE", 3)
    tasks = [Task(key=f"{n}", command="true", priority=n % 4) for n in range(20)]
    with RunStore(either) as opened:
        opened.submit("r", None, tasks, is_given=True)
        owned = opened.owned_runs()
        (taken,) = owned.take(from_dead=True)
        batches = load_all(owned, taken)
    loaded = [each for batch in batches for each in batch]
    assert loaded == [task.key for task in sorted(tasks, key=lambda task: -task.priority)]
    assert max(map(len, batches)) == 3


def load_all(owned: OwnedRuns, taken) -> list[list[str]]:
    batches = []
    while not taken.is_loaded:
        batches.append([run_key(each.task.key).key for each in owned.load(taken)])
    return batches


def test_a_run_without_unfinished_tasks_ends_when_it_is_taken(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"))
    with RunStore(file_ledger) as opened:
        with opened.database.writing() as connection:
            connection.exec_driver_sql("UPDATE celeriac_task SET state = 'success'")
        assert [run.name for run in opened.submitted_runs()] == ["jobs"]
    with running_service(tmp_path, "one", file_ledger) as one:
        wait_until_ended(file_ledger, "jobs")
        one.wait_for_log("run ended")
    assert one.log_lines("run ended")[0]["earlier"] == 1


def test_an_owner_that_was_taken_over_cannot_write(ledger):
    with RunStore(ledger) as one, RunStore(ledger) as other:
        one.submit("r", None, [Task(key="k", command="true")], is_given=True)
        owned = one.owned_runs()
        owned.take(from_dead=True)
        with other.database.writing() as connection:
            connection.exec_driver_sql("UPDATE celeriac_owner SET until = 0")
        (taken,) = other.owned_runs().take(from_dead=True)
        assert taken.previous_owner == f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(LedgerLost):
            owned.take(from_dead=True)


# — bad input —


def test_a_file_with_errors_is_refused_completely(tmp_path, file_ledger):
    file = jobs(tmp_path, job("a"), {"key": "b", "comand": "true"}, job("a"))
    refused = run("submit", file, "--ledger", file_ledger, cwd=tmp_path)
    assert refused.status == 2
    assert [line.split(":")[1] for line in refused.err.splitlines()] == ["2", "2", "3"]
    assert not Path(tmp_path / "ledger.db").exists()


AMQP = ("--broker", "amqp://127.0.0.1:1", "--backend", "rpc://")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("submit", "none.jsonl"), "none.jsonl: there is no such file"),
        (("submit", "jobs.jsonl", "--ledger", "none"), "ledger: this command needs one"),
        (("submit", "jobs.jsonl", "--retries", "-1"), "retries: -1 is not a whole number"),
        (("serve", "--ledger", "none"), "ledger: this command needs one"),
        (("serve", "--ledger", "postgresql+psycopg://user@127.0.0.1:1/none"), "cannot be used"),
        (("serve", "--grace", "soon"), "--grace: 'soon' is not a number of seconds"),
        (("serve", *AMQP, "--output", "out"), "--output: a result backend of kind 'rpc' cannot carry"),
        (("cancel", "--run", "unknown"), "--run: there is no run 'unknown'"),
        (("cancel", "--run", "unknown", "--queue", "q"), "--run takes KEYs"),
        (("cancel", "key", "--ledger", "x.db"), "--ledger needs --run"),
    ],
)
def test_bad_input_is_status_2(arguments, error, tmp_path):
    jobs(tmp_path, job("a"))
    with RunStore(f"sqlite:///{tmp_path}/x.db"):
        pass
    given = arguments if "--ledger" in arguments or "key" in arguments else (*arguments, "--ledger", "x.db")
    ended = run(*given, cwd=tmp_path)
    assert ended.status == 2
    assert error in ended.err
    assert "Traceback" not in ended.err


def test_a_name_that_is_in_use_is_refused(tmp_path, file_ledger):
    submit(tmp_path, file_ledger, job("a"))
    ended = run("submit", "jobs.jsonl", "--name", "jobs", "--ledger", file_ledger, cwd=tmp_path)
    assert (ended.status, ended.err) == (
        2,
        "celeriac: name: there is already a run 'jobs'; give another name\n",
    )


def test_a_ledger_on_a_server_needs_a_broker(tmp_path, ledger):
    ended = run("serve", "--ledger", ledger, cwd=tmp_path)
    assert (ended.status, ended.err.count("a ledger on a server needs a broker")) == (2, 1)


@pytest.mark.parametrize("keys", [(), ("a",)], ids=["whole", "key"])
def test_the_run_of_a_live_process_is_cancelled_by_that_process(tmp_path, file_ledger, keys):
    with started("run", jobs(tmp_path, job("a")), "--ledger", file_ledger, cwd=tmp_path) as running:
        until(lambda: starts(tmp_path), "the start of the task")
        ended = run("cancel", "--run", "jobs", *keys, "--ledger", file_ledger, "--wait", "60", cwd=tmp_path)
        assert (ended.status, ended.err) == (0, "")
        assert "jobs" in ended.out or "a: revoked" in ended.out
        until(lambda: running.process.poll() is not None, "the end of the run")
