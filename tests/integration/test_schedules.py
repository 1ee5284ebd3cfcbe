"""Schedules of `celeriac serve`: real processes on SQLite, and on PostgreSQL with Redis and a worker."""

from __future__ import annotations

import json
import threading
import time
from calendar import timegm
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schedules import ScheduleStore
from celeriac.ledger.views import list_runs
from celeriac.runs.schedule import Schedule
from celeriac.task.task import Task
from tests.support.cli_runner import jobs, run, run_in_process, until
from tests.support.long import slow
from tests.support.service_host import job, postgres_ledger, running_service, starts
from tests.support.workers import worker

EVERY_SECOND = Schedule(name="tick", jobs="x", every=1.0)


@pytest.fixture
def file_ledger(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return postgres_ledger(request.getfixturevalue("postgres"), f"ledger_{uuid4().hex}")


@pytest.fixture
def stores(ledger: str) -> Iterator[list[ScheduleStore]]:
    with RunStore(ledger) as first, RunStore(ledger) as second:
        yield [ScheduleStore(first), ScheduleStore(second)]


def scheduled(folder: Path, **fields: str) -> None:
    """Write a schedule, and a file of one job that records its start."""
    jobs(folder, job("a", "true", cwd=str(folder)), name="tick.jsonl")
    lines = [f'{name} = "{value}"' for name, value in {"jobs": "tick.jsonl", **fields}.items()]
    (folder / "celeriac.toml").write_text("\n".join(["[schedules.tick]", *lines, ""]))


def runs_in(ledger: str) -> dict[str, int]:
    """Return the names of the runs of the schedule, and how many tasks each has."""
    with RunStore(ledger, must_exist=True) as opened:
        views = list_runs(opened.database, limit=1_000)
    return {view.name: view.counts.tasks for view in views if "." not in view.name}


def number_ended(ledger: str) -> int:
    with RunStore(ledger, must_exist=True) as opened:
        return sum(view.ended is not None for view in list_runs(opened.database, limit=1_000))


def due_times(names: Iterator[str] | dict[str, int]) -> list[int]:
    return sorted(timegm(time.strptime(name.removeprefix("tick-"), "%Y%m%dT%H%M%SZ")) for name in names)


# — the store —


def test_of_two_services_one_makes_the_run_of_a_due_time(stores):
    due = time.time() + 1
    for store in stores:
        store.read("tick")
    made: list[bool] = []

    def make(store: ScheduleStore) -> None:
        made.append(store.make_run("tick", due, "tick-1", "tick.jsonl", [Task(key="a", command="true")] * 1))

    threads = [threading.Thread(target=make, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, True]
    stored = stores[0].read("tick")
    assert (stored.handled, stored.run, stored.has_ended) == (due, "tick-1", False)
    assert not stores[1].make_run("tick", due, "tick-2", "tick.jsonl", [Task(key="a", command="true")])
    assert stores[0].make_run("tick", due + 1, "tick-3", "tick.jsonl", [Task(key="a", command="true")])


def test_a_new_schedule_starts_now_and_a_time_that_was_passed_over_gets_no_run(stores):
    before = time.time()
    assert before <= stores[0].read("tick").handled == stores[1].read("tick").handled <= time.time()
    assert stores[0].pass_over("tick", before + 10)
    assert not stores[1].pass_over("tick", before + 10)
    assert not stores[1].make_run("tick", before + 10, "tick-1", "tick.jsonl", [Task(key="a", command="true")])
    assert stores[1].read("tick").run is None


def test_a_run_of_that_name_is_left_alone_and_the_time_is_handled(stores, ledger):
    due = time.time() + 1
    stores[0].read("tick")
    with RunStore(ledger) as opened:
        opened.submit("tick-1", None, [Task(key="own", command="true")], is_given=True)
    assert not stores[0].make_run("tick", due, "tick-1", "tick.jsonl", [Task(key="a", command="true")])
    assert stores[0].read("tick").handled == due
    assert runs_in(ledger) == {"tick-1": 1}


# — the service —


def test_a_service_makes_and_runs_each_due_time_once(tmp_path, file_ledger):
    scheduled(tmp_path, every="1s", overlap="allow", missed="all")
    with running_service(tmp_path, "one", file_ledger) as one:
        one.wait_for_log("scheduled", 3)
        until(lambda: number_ended(file_ledger) >= 3, "the end of three runs")
    times = due_times(runs_in(file_ledger))
    assert times == list(range(times[0], times[-1] + 1))
    assert len(starts(tmp_path)) <= len(times)
    listed = json.loads(run_in_process("schedules", "--ledger", file_ledger, "--json", cwd=tmp_path).out)
    last = max(runs_in(file_ledger))
    assert [(each["last"]["run"], each["last"]["tasks"]) for each in listed] == [(last, 1)]
    assert f"{last} " in run_in_process("schedules", "--ledger", file_ledger, cwd=tmp_path).out
    (line, *_) = one.log_lines("scheduled")
    assert (line["schedule"], line["tasks"]) == ("tick", 1)
    assert line["run"].startswith("tick-20")


def test_a_service_that_is_killed_again_and_again_leaves_no_time_out(tmp_path, file_ledger):
    scheduled(tmp_path, every="1s", overlap="allow", missed="all")
    for round_number in range(4):
        with running_service(tmp_path, f"s{round_number}", file_ledger) as service:
            service.wait_for_log("scheduled", 1 + round_number)
            time.sleep(0.13 * round_number)  # the context kills it at another moment each time
    times = due_times(runs_in(file_ledger))
    assert times == list(range(times[0], times[-1] + 1))
    assert len(times) >= 4
    assert set(runs_in(file_ledger).values()) == {1}


@pytest.fixture(params=["redis", slow("rabbitmq")])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return the URLs of a broker and a result backend."""
    if request.param == "redis":
        url = request.getfixturevalue("shared_redis").url
        return url, url
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


@pytest.mark.celery
def test_two_services_on_a_server_make_each_run_once_also_when_one_is_killed(tmp_path, postgres, urls):
    ledger = postgres_ledger(postgres, f"ledger_{uuid4().hex}")
    scheduled(tmp_path, every="1s", overlap="allow", missed="all")
    places = ("--broker", urls[0], "--backend", urls[1])
    with worker(tmp_path, urls, "--concurrency", "2"), running_service(tmp_path, "two", ledger, *places) as two:
        with running_service(tmp_path, "one", ledger, *places) as one:
            one.wait_for_log("scheduled")
        two.wait_for_log("scheduled", 3)
        until(lambda: number_ended(ledger) >= 4, "the end of four runs", 60)
    times = due_times(runs_in(ledger))
    assert times == list(range(times[0], times[-1] + 1))
    assert set(runs_in(ledger).values()) == {1}


def test_a_time_waits_for_the_run_before(tmp_path, file_ledger):
    scheduled(tmp_path, every="1s", overlap="wait")
    jobs(tmp_path, job("a"), name="tick.jsonl")
    with running_service(tmp_path, "one", file_ledger) as one:
        until(lambda: starts(tmp_path), "the start of the first run")
        until(lambda: time.time() > due_times(runs_in(file_ledger))[0] + 4, "other due times")
        assert len(runs_in(file_ledger)) == 1
        (tmp_path / "go").touch()
        one.wait_for_log("scheduled", 2)
    assert one.log_lines("schedule passed over")[0]["why"] == "a later time waited, too"


def test_a_file_that_has_become_bad_gets_no_run_and_the_next_time_does(tmp_path, file_ledger):
    scheduled(tmp_path, every="1s", overlap="allow")
    with running_service(tmp_path, "one", file_ledger) as one:
        (tmp_path / "tick.jsonl").write_text('{"comand": "true"}\n')
        one.wait_for_log("schedule failed: its jobs cannot be read")
        scheduled(tmp_path, every="1s", overlap="allow")
        one.wait_for_log("scheduled", len(one.log_lines("scheduled")) + 1)
    line = one.log_lines("schedule failed")[0]
    assert "tick.jsonl:1: comand: it is not a field of a job" in line["why"]


# — bad and listed schedules —


def test_serve_refuses_bad_schedules_and_doctor_names_them(tmp_path, file_ledger):
    scheduled(tmp_path, every="soon")
    refused = run("serve", "--ledger", file_ledger, cwd=tmp_path)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert f"{tmp_path}/celeriac.toml: schedules.tick.every: 'soon' is not an interval" in refused.err
    assert not (tmp_path / "ledger.db").exists()
    examined = run("doctor", "--ledger", file_ledger, "--json", cwd=tmp_path)
    (finding,) = [each for each in json.loads(examined.out)["findings"] if each["check"] == "schedules"]
    assert (examined.status, finding["level"]) == (1, "error")
    assert "schedules.tick.every" in finding["text"]
    scheduled(tmp_path, every="1s")
    (tmp_path / "tick.jsonl").write_text("{}\n")
    refused = run("serve", "--ledger", file_ledger, cwd=tmp_path)
    assert refused.status == 2
    assert "tick.jsonl:1: command: it is missing" in refused.err


def test_schedules_are_listed_with_their_next_times(tmp_path):
    scheduled(tmp_path, cron="15 4 * * mon-fri", timezone="Europe/Berlin")
    (listed,) = json.loads(run_in_process("schedules", "--json", "-n", "2", cwd=tmp_path).out)
    assert (listed["schedule"], listed["cron"], len(listed["next"])) == ("tick", "15 4 * * mon-fri", 2)
    assert listed["last"] is None
    assert time.time() < listed["next"][0] < listed["next"][1]
    shown = run_in_process("schedules", cwd=tmp_path).out
    assert " 04:15:00+0" in shown
    (tmp_path / "celeriac.toml").write_text("[schedules.a]\n")
    bad = run_in_process("schedules", cwd=tmp_path)
    assert (bad.status, bad.err.count("\n")) == (2, 1)


def test_other_commands_do_not_mind_schedules(tmp_path):
    scheduled(tmp_path, every="soon")
    assert run("run", "-q", "--", "true", cwd=tmp_path).status == 0
