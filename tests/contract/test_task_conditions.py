"""Conditions for tasks, and tags of runs, in SQLite and in PostgreSQL: SQL leaves out no row that matches."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy import insert, select

from celeriac.ledger import views
from celeriac.ledger.codec import encode, encode_execution, task_row
from celeriac.ledger.retry import RetryFilter
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schema import RUNS, TASKS
from celeriac.ledger.views import count_runs, list_runs, list_tasks, slowest_tasks
from celeriac.ledger.where.condition import Condition, parse_condition
from celeriac.task.result import Execution
from celeriac.task.task import Task
from celeriac.web import task_pages
from celeriac.web.task_pages import TaskFilter, read_task_page
from tests.support.service_host import postgres_ledger

STATES = ("success", "failed", "failed", "waiting", "running", "skipped")
NOW = 1000.0


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path) -> Iterator[RunStore]:
    """A ledger with one run of six tasks in six states, read two rows at a time."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/ledger.db"
    else:
        url = postgres_ledger(request.getfixturevalue("postgres"), f"where_{uuid4().hex}")
    with RunStore(url) as store, store.database.writing() as connection:
        values = {"name": "jobs", "created": 1.0, "ended": 2.0, "submitted": True, "total": 6}
        run = connection.execute(insert(RUNS).values(**values)).inserted_primary_key[0]
        connection.execute(insert(TASKS), [row_of(run, n, state) for n, state in enumerate(STATES)])
    with RunStore(url) as store:
        yield store


def row_of(run, n, state):
    """Return the row of task n: it came at n, began 10 later and took 100 * n; half of them are tagged."""
    task = Task(
        key=f"k{n}",
        command=("echo", "a b") if n % 2 else "make all",
        queue="gpu" if n > 2 else "default",
        priority=n - 2,
        attempt=1 + n % 2,
        tags=("big", f"n={n}") if n % 2 else (),
    )
    began = None if state in ("waiting", "skipped") else 10.0 + n
    ended = state in ("success", "failed")
    execution = Execution(
        host=f"node-{n}",
        started=began,
        duration=100.0 * n if ended else None,
        exit_code=n if ended else None,
        peak_memory=n * 2**20 if ended else None,
    )
    return {
        **task_row(run, f"k{n}", n, task, float(n)),
        "state": state,
        "reason": "exit_code" if state == "failed" else None,
        "detail": "exit code" if state == "failed" else None,
        "execution": None if began is None else encode_execution(execution),
    }


EXPECTED = [
    ("state=failed", "12"),
    ("state!=failed", "0345"),
    ("not (state=failed or state=success)", "345"),
    ("priority>=1", "345"),
    ("priority<0 or lost>0", "01"),
    ("attempt=2 and queue=gpu", "35"),
    ("queue!=gpu", "012"),
    ("reason=exit_code", "12"),
    ("reason!=exit_code", "0345"),
    ("detail~CODE", "12"),
    ("tag=big", "135"),
    ("tag=n=3 or tag=n=1", "13"),
    ("tag!=big", "024"),
    ("tag~N=", "135"),
    ("took>50", "124"),
    ("took>5m", "4"),
    ("not took>50", "035"),
    ("took<=50", "0"),
    ("waited=10", "0124"),
    ("waited>15m", "3"),
    ("exit_code!=0", "12345"),
    ("exit_code>0", "12"),
    ("memory>=2M", "2"),
    ("host~node", "0124"),
    ("worker=node-1", "1"),
    ("command~'make a'", "024"),
    ("command=\"echo 'a b'\"", "135"),
    ("key=k1 or key=K2", "1"),
    ("priority>99999999999", ""),
    ("slots=1 and not (state=failed and exit_code=1)", "02345"),
]


@pytest.mark.parametrize("size", [2, 100])
def test_tasks_are_found(store, monkeypatch, size):
    monkeypatch.setattr(views, "PAGE_SIZE", size)
    monkeypatch.setattr(task_pages, "BATCH_SIZE", size)
    found, paged = {}, {}
    for text, _ in EXPECTED:
        where = parse_condition(text, now=NOW)
        found[text] = "".join(str(view.task.key)[1] for view in list_tasks(store.database, 1, where=where))
        paged[text] = "".join(keys_of_pages(store, where))
    assert found == paged == dict(EXPECTED)
    two = list_tasks(store.database, 1, where=parse_condition("attempt=2"), limit=2)
    assert [view.task.key for view in two] == ["k1", "k3"]


def keys_of_pages(store: RunStore, where: Condition) -> Iterator[str]:
    after = None
    while True:
        page = read_task_page(store.database, 1, TaskFilter(where=where), after=after, limit=100)
        yield from (str(view.task.key)[1] for view in page.tasks)
        if (after := page.next) is None:
            return


def test_the_slowest_come_first(store, monkeypatch):
    monkeypatch.setattr(views, "PAGE_SIZE", 2)

    def slowest(number, now=NOW, text="lost=0"):
        found = slowest_tasks(store.database, 1, number, where=parse_condition(text), now=now)
        return [view.task.key for view in found]

    assert slowest(2) == ["k4", "k2"]
    assert slowest(9) == ["k4", "k2", "k1", "k0"]
    assert slowest(9, now=None) == ["k2", "k1", "k0"]
    assert slowest(9, text="exit_code=1") == ["k1"]


def test_a_row_that_is_malformed_is_left_out(store):
    with store.database.writing() as connection:
        connection.execute(TASKS.update().where(TASKS.c.key == "k1").values(payload="{", execution="[]"))
    where = parse_condition("queue=default or took>50", now=NOW)
    assert [view.task.key for view in list_tasks(store.database, 1, where=where)] == ["k0", "k2", "k4"]


def test_matching_tasks_of_a_submitted_run_are_queued_again(store):
    wanted = RetryFilter(where=parse_condition("tag=big"))
    assert store.requeue(1, "jobs", wanted) == 2
    with store.database.reading() as connection:
        states = {row.key: row.state for row in connection.execute(select(TASKS.c.key, TASKS.c.state))}
    assert states == {
        "k0": "success",
        "k1": "waiting",
        "k2": "failed",
        "k3": "waiting",
        "k4": "running",
        "k5": "waiting",
    }


def test_runs_are_found_by_their_tags(store):
    for n in range(5):
        store.create_run(f"run{n}", inputs={"tags": ("every", f"n={n}", "größe"), "folder": '"tags":["no"]'})
    store.create_run("odd", inputs={"tags": ("größe",), "folder": "\udc80"})
    store.create_run("untagged", inputs={"folder": '"tags":["every"]'})

    def names(*tags, limit=None):
        return [view.name for view in list_runs(store.database, tags=tags, limit=limit)]

    assert names("every") == ["run4", "run3", "run2", "run1", "run0"]
    assert names("every", limit=2) == ["run4", "run3"]
    assert names("every", "n=2") == ["run2"]
    assert names("größe")[:2] == ["odd", "run4"]
    assert names("no") == []
    assert count_runs(store.database, tags=["every"]) == 5
    assert encode(list_runs(store.database)[0].tags) == "[]"
