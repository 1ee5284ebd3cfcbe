"""The runs of the ledger."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from celeriac.json_types.runs import Run
from celeriac.ledger.fields import run_fields
from celeriac.web.api.endpoint import Call, Endpoint
from celeriac.web.reads import MAX_RUNS
from celeriac.web.statistics import Ends, RunStatistics
from celeriac.web.tokens import Role

DEFAULT_RUNS = 20
RUN = {"run": "The name of a run."}


class RunsQuery(msgspec.Struct, forbid_unknown_fields=True):
    """A page of runs."""

    limit: Annotated[int, Meta(ge=1, le=MAX_RUNS, description="The number of runs.")] = DEFAULT_RUNS
    before: Annotated[str | None, Meta(description="Only runs that are older than the run of this name.")] = None
    tag: Annotated[list[str], Meta(description="Only runs with this tag. Repeatable: with each of them.")] = []


class Statistics(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A run in numbers."""

    run: str
    measured: float
    """When they were read: those of a large run are some seconds old."""

    states: dict[str, int]
    failures: dict[str, int]
    """The number of failed tasks by reason."""

    step: float
    """Seconds between two elements of `ends`."""

    ends: list[Ends]
    """The tasks that ended over time. Steps without an end are left out."""


class Session(msgspec.Struct, forbid_unknown_fields=True):
    """The rights of the client."""

    role: Role
    csrf: str | None
    """A browser sends it as X-CSRF-Token with each change; null for a client that sends a token itself."""


def get_session(call: Call) -> Any:
    return Session(call.access.role, call.access.csrf)


def get_runs(call: Call) -> Any:
    query: RunsQuery = call.query
    return [run_fields(view) for view in call.reads.runs(limit=query.limit, before=query.before, tags=query.tag)]


def get_run(call: Call) -> Any:
    return run_fields(call.reads.run(call.path["run"]))


def get_statistics(call: Call) -> Any:
    statistics = call.reads.statistics(call.path["run"])
    assert statistics is not None  # noqa: S101 - it has waited for them
    return statistics_fields(call.path["run"], statistics)


def statistics_fields(run: str, statistics: RunStatistics) -> Statistics:
    """Return the statistics without the counts, which the run has."""
    return Statistics(
        run=run,
        measured=statistics.measured,
        states=statistics.states,
        failures=statistics.failures,
        step=statistics.step,
        ends=statistics.ends,
    )


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/session",
        name="session",
        summary="Show the role of the client.",
        handler=get_session,
        result=Session,
    ),
    Endpoint(
        method="GET",
        path="/runs",
        name="runs",
        summary="List runs, the latest first.",
        handler=get_runs,
        query=RunsQuery,
        result=list[Run],
        errors=(404,),
    ),
    Endpoint(
        method="GET",
        path="/runs/{run}",
        name="run",
        summary="Show a run and the number of its tasks in each state.",
        handler=get_run,
        result=Run,
        errors=(404,),
        path_meanings=RUN,
    ),
    Endpoint(
        method="GET",
        path="/runs/{run}/statistics",
        name="statistics",
        summary="Count the tasks of a run by state, its failures by reason, and its ends over time.",
        handler=get_statistics,
        result=Statistics,
        errors=(404,),
        path_meanings=RUN,
    ),
)
