"""One run: its numbers, and a page of its tasks."""

from __future__ import annotations

import socket
from typing import Any

from starlette.datastructures import QueryParams

from celeriac.ledger.counts import Counts
from celeriac.ledger.views import RunView
from celeriac.task.state import State
from celeriac.task.task import DEFAULT_QUEUE
from celeriac.web.errors import NotFound
from celeriac.web.page.charts import chart_of
from celeriac.web.page.overview import end_of, statistics_of
from celeriac.web.page.possible import actions_of_run, is_within_reach
from celeriac.web.page.queries import TasksQuery
from celeriac.web.reads import Reads
from celeriac.web.statistics import RunStatistics
from celeriac.web.task_pages import TaskFilter

PAGE_SIZE = 100  # tasks


def run_values(reads: Reads, given: QueryParams, *, is_live: bool) -> dict[str, Any]:
    """Return the values of the page. Raises `NotFound`."""
    query = TasksQuery.parse(given)
    run = reads.run(run_name(given), wait=is_live)
    statistics = statistics_of(reads, run, wait=is_live) if run.counts.tasks or is_live else None
    wanted = TaskFilter(states=[State(name) for name in query.states], queue=query.queue or None, text=query.text)
    page = reads.tasks(run.name, wanted, after=query.after, limit=PAGE_SIZE)
    chart = None if statistics is None else chart_of([statistics], run.created, max(run.created, end_of(run)))
    return {
        "run": run,
        "query": query,
        "numbers": numbers_of(run, statistics),
        "chart": chart,
        "is_counting": statistics is None,
        "failures": None if statistics is None else list(statistics.failures.items()),
        "tasks": page.tasks,
        "next": page.next,
        "task_states": [state.value for state in State],
        "queues_known": queues_known(reads),
        "possible": actions_of_run(run, can_ask=can_ask(reads, run)),
    }


def run_name(given: QueryParams) -> str:
    """Return the run that an address names. Raises `NotFound`."""
    name = given.get("run")
    if not name:
        raise NotFound("the address names no run")
    return name


def numbers_of(run: RunView, statistics: RunStatistics | None) -> list[tuple[str, int]]:
    """Return the states that tasks of the run have, each with the number of its tasks."""
    if statistics is None or run.counts.tasks != statistics.counts.tasks:
        return [(name, number) for name, number in rough_numbers(run.counts) if number]
    numbers = dict(statistics.states)
    numbers[State.WAITING.value] = numbers.get(State.WAITING.value, 0) + run.unrecorded
    return [(state.value, numbers[state.value]) for state in State if numbers.get(state.value)]


def rough_numbers(counts: Counts) -> list[tuple[str, int]]:
    return [
        (State.WAITING.value, counts.waiting),
        (State.RUNNING.value, counts.in_flight),
        (State.SUCCESS.value, counts.succeeded),
        (State.FAILED.value, counts.failed),
        (State.REVOKED.value, counts.revoked + counts.never_ran),
    ]


def can_ask(reads: Reads, run: RunView) -> bool:
    """Return whether the live owner of a run may be asked from here."""
    return is_within_reach(run.owner, socket.gethostname(), has_broker=reads.sources.connection is not None)


def queues_known(reads: Reads) -> list[str]:
    """Return the queues that a filter proposes."""
    broker = reads.last_broker()
    return [DEFAULT_QUEUE] if broker is None else [queue.name for queue in broker.queues]
