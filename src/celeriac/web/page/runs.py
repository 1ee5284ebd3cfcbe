"""The list of runs."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import QueryParams

from celeriac.ledger.views import RunState, RunView
from celeriac.web.page.queries import RunsQuery
from celeriac.web.reads import Reads

PAGE_SIZE = 50  # runs
MAX_SEARCHED = 2_000  # runs


def runs_values(reads: Reads, given: QueryParams, *, is_live: bool) -> dict[str, Any]:
    """Return the values of the page."""
    query = RunsQuery.parse(given)
    runs, following = find_runs(reads, query, wait=is_live)
    return {"query": query, "runs": runs, "next": following, "run_states": [state.value for state in RunState]}


def find_runs(reads: Reads, query: RunsQuery, *, wait: bool) -> tuple[list[RunView], str | None]:
    """Return the runs that match, the latest first, and the run after which the next page begins; None at the end."""
    found: list[RunView] = []
    before, searched = query.before, 0
    while True:
        page = reads.runs(limit=PAGE_SIZE + 1, before=before, wait=wait)
        for run in page[:PAGE_SIZE]:
            if len(found) == PAGE_SIZE:
                return found, found[-1].name
            if matches(run, query):
                found.append(run)
        searched += len(page)
        if len(page) <= PAGE_SIZE:
            return found, None
        before = page[PAGE_SIZE - 1].name
        if len(found) == PAGE_SIZE or searched >= MAX_SEARCHED:
            return found, before


def matches(run: RunView, query: RunsQuery) -> bool:
    text = query.text.casefold()
    is_named = any(text in name.casefold() for name in (run.name, *run.tags))
    return is_named and (not query.states or run.state.value in query.states)
