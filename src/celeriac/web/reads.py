"""All that a server reads, once for all of its viewers: the pages and the REST interface ask this part alone.

    runs         ─► rows of the ledger; the counts of a run without stored ones from its statistics
    statistics   ─► one query over all tasks of a run, kept for good once the run has ended
    broker       ─► `cluster.status`: queues by the broker, workers by their leases

Each function may be called in any thread. It raises `NotFound` without such a source, `LedgerError` and
`BrokerUnavailable`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import func, select

from celeriac.cluster.status import StatusReader
from celeriac.cluster.status_parts import Status
from celeriac.errors import InvalidConfig
from celeriac.ledger.counts import Counts, count_tasks, unrecorded_of
from celeriac.ledger.database import Database
from celeriac.ledger.schema import RUNS, TASKS
from celeriac.ledger.views import RunView, TaskView, find_task, matching_runs, run_view, select_runs
from celeriac.web.cached import Cached
from celeriac.web.checks import cached_app
from celeriac.web.errors import NotFound
from celeriac.web.site import Sources
from celeriac.web.statistics import RunStatistics, read_statistics
from celeriac.web.task_pages import TaskFilter, TaskPage, read_task_page
from celeriac.web.waiting import count_waiting

MAX_AGE = 1.0  # seconds between two reads of one thing
MAX_RUNS_KEPT = 200  # runs whose statistics are kept
SMALL_RUN = 5_000  # tasks: so many are counted in milliseconds
MAX_RUNS = 200  # runs of one page
BROKER_PAUSE = 3.0  # times the duration of a read: a broker that does not answer is asked again soon


class Reads:
    """The sources of one server."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._lock = threading.Lock()
        self._statistics: OrderedDict[tuple[int, float | None], Cached[RunStatistics]] = OrderedDict()
        self._waiting: OrderedDict[int, Cached[dict[str, int]]] = OrderedDict()
        self._status_reader: StatusReader | None = None
        self._broker: Cached[Status] = Cached(self._read_broker, pause_per_read=BROKER_PAUSE)

    @property
    def ledger(self) -> Database:
        return self.sources.some_ledger

    # — runs —

    def runs(
        self, *, limit: int, before: str | None = None, tags: Collection[str] = (), wait: bool = True
    ) -> list[RunView]:
        """Return runs, the latest first: those with each of the tags that are older than the run `before`. For `wait`
        see `run`."""
        older_than = None if before is None else self._run_row(before).id
        with self.ledger.reading() as connection:
            rows = matching_runs(self.ledger, connection, tags, limit, older_than)
        return [self._view(row, wait=wait) for row in rows]

    def run(self, name: str, *, wait: bool = True) -> RunView:
        """Return a run. Without `wait`, the counts of a large running run may be older, or all 0 at first. Raises
        `NotFound`."""
        return self._view(self._run_row(name), wait=wait)

    def statistics(self, name: str, *, wait: bool = True) -> RunStatistics | None:
        """Return the statistics of a run. Without `wait`, return the last ones, and None if there are none yet."""
        row = self._run_row(name)
        cached = self._statistics_of(row)
        return cached.get(MAX_AGE if row.ended is None else float("inf")) if wait else cached.peek()

    def waiting(self, run: RunView, *, wait: bool = True) -> dict[str, int] | None:
        """Return the waiting tasks of a run by queue. Without `wait`, return the last numbers, or None."""
        with self._lock:
            if (cached := self._waiting.get(run.id)) is None:
                cached = self._waiting[run.id] = Cached(partial(count_waiting, self.ledger, run))
            self._waiting.move_to_end(run.id)
            while len(self._waiting) > MAX_RUNS_KEPT:
                self._waiting.popitem(last=False)
        return cached.get(MAX_AGE) if wait else cached.peek()

    def _run_row(self, name: str) -> Any:
        with self.ledger.reading() as connection:
            row = connection.execute(select_runs(self.ledger).where(RUNS.c.name == name)).one_or_none()
        if row is None:
            raise NotFound(f"run {name!r}: there is none in {self.ledger.masked_url}")
        return row

    def _view(self, row: Any, *, wait: bool) -> RunView:
        with self.ledger.reading() as connection:
            counted = row.counts is not None
            view = run_view(connection, row, counted=counted)
            if counted:
                return view
            counts = count_tasks(connection, row.id) if is_small(connection, row.id) else None
        if counts is None:
            cached = self._statistics_of(row)
            statistics = cached.get(MAX_AGE) if wait else cached.peek()
            counts = Counts() if statistics is None else statistics.counts
        unrecorded = unrecorded_of(row.total, counts)
        whole = msgspec.structs.replace(counts, waiting=counts.waiting + unrecorded)
        return replace(view, counts=whole, unrecorded=unrecorded)

    def _statistics_of(self, row: Any) -> Cached[RunStatistics]:
        """Return the statistics of a run, to be read. A run that goes on again has new ones."""
        key = (row.id, row.ended)
        with self._lock:
            if (cached := self._statistics.get(key)) is None:
                cached = self._statistics[key] = Cached(partial(self._read_statistics, row))
            self._statistics.move_to_end(key)
            while len(self._statistics) > MAX_RUNS_KEPT:
                self._statistics.popitem(last=False)
        return cached

    def _read_statistics(self, row: Any) -> RunStatistics:
        with self.ledger.reading() as connection:
            view = run_view(connection, row, counted=False)
        return read_statistics(self.ledger, view, row.total)

    # — tasks —

    def tasks(self, run: str, wanted: TaskFilter, *, after: str | None, limit: int) -> TaskPage:
        """Return a page of the tasks of a run. Raises `NotFound` and `WebError`."""
        return read_task_page(self.ledger, self._run_row(run).id, wanted, after=after, limit=limit)

    def task(self, run: str, key: str) -> tuple[RunView, TaskView]:
        """Return a task and its run, without the counts of the run. Raises `NotFound`."""
        row = self._run_row(run)
        with self.ledger.reading() as connection:
            view = run_view(connection, row, counted=False)
        try:
            return view, find_task(self.ledger, view, key)
        except InvalidConfig as error:
            raise NotFound(str(error)) from None

    # — the broker —

    def broker(self, *, max_age: float = MAX_AGE) -> Status:
        """Return the queues and the workers."""
        self.sources.some_connection  # noqa: B018 - raises
        return self._broker.get(max_age)

    def last_broker(self) -> Status | None:
        """Return what was read last, without a wait."""
        return self._broker.peek()

    def _read_broker(self) -> Status:
        connection = self.sources.some_connection
        if self._status_reader is None:
            self._status_reader = StatusReader(cached_app(connection), timeout=connection.operation_timeout)
        return self._status_reader.read(self.sources.queues)


def is_small(connection: Any, run: int) -> bool:
    """Return whether a run has few tasks, from an index alone."""
    last = connection.execute(select(func.max(TASKS.c.place)).where(TASKS.c.run == run)).scalar()
    return not isinstance(last, int) or last < SMALL_RUN
