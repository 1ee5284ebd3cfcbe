"""The overview of queues, workers and runs, as values: what `status --watch` and `top` draw.

broker, leases ─► Status ─┐
ledger         ─► runs ───┴─► OverviewReader.read ─► Overview

The reader keeps its connections. A server that is unavailable costs one line, and the next read tries it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from celeriac.cluster.status_parts import Status
from celeriac.errors import BackendUnavailable, BrokerUnavailable, InvalidConfig, LedgerError
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.running_keys import keys_of_ids
from celeriac.ledger.views import RunState, RunView, list_runs

RUNS_SHOWN = 50
PAUSE_PER_READ = 10  # the ledger is left alone at least this many times as long as a read takes
NO_KEYS: Mapping[str, str] = {}


class StatusSource(Protocol):
    """Reads queues and workers of a broker."""

    def read(self, queues: Collection[str]) -> Status:
        """Raise `BrokerUnavailable` or `BackendUnavailable`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """A run and its throughput."""

    view: RunView
    rate: float | None
    """Tasks that ended per second since the last read; None at the first read of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The state of the servers at one moment."""

    when: float
    """Seconds since the epoch."""

    status: Status | None = None
    """None without a broker, and while it is unavailable."""

    runs: tuple[RunLine, ...] | None = None
    """The latest runs, those that have not ended first; None without a ledger, and while it is unavailable."""

    keys: Mapping[str, str] = field(default_factory=dict)
    """The keys of running tasks by id, as far as the ledger has them."""

    problems: tuple[str, ...] = ()
    """One line for each server that is unavailable."""


class OverviewReader:
    """Reads overviews. It belongs to one thread."""

    def __init__(
        self,
        *,
        broker: StatusSource | None,
        ledger: Callable[[], RunStore] | None,
        queues: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ledger` opens the ledger: when it is read for the first time, and again after it was unavailable."""
        self._broker, self._open_ledger, self._queues, self._clock = broker, ledger, queues, clock
        self._store: RunStore | None = None
        self._throughput = Throughput()
        self._runs: tuple[RunLine, ...] | None = None
        self._next_read = 0.0

    def read(self) -> Overview:
        problems: list[str] = []
        status, keys = None, NO_KEYS
        if self._broker is not None:
            try:
                status = self._broker.read(self._queues)
                problems += [] if status.problem is None else [status.problem]
            except (BrokerUnavailable, BackendUnavailable) as error:
                problems.append(str(error))
        if self._open_ledger is not None:
            try:
                self._read_runs()
                keys = self._read_keys(status)
            except LedgerError as error:
                problems.append(str(error))
                self._runs, self._next_read = None, 0.0
        return Overview(when=time.time(), status=status, runs=self._runs, keys=keys, problems=tuple(problems))

    def close(self) -> None:
        if self._broker is not None:
            self._broker.close()
        if self._store is not None:
            self._store.close()

    def open_store(self) -> RunStore:
        """Return the ledger. Raises `InvalidConfig` without one, and `LedgerError`."""
        if self._open_ledger is None:
            raise InvalidConfig("ledger", "there is none", "give --ledger")
        if self._store is None:
            self._store = self._open_ledger()
        return self._store

    def _read_runs(self) -> None:
        store, began = self.open_store(), self._clock()
        if began < self._next_read:
            return
        views = list_runs(store.database, limit=RUNS_SHOWN)
        ended = self._clock()
        self._next_read = ended + PAUSE_PER_READ * (ended - began)
        lines = (RunLine(view=view, rate=self._throughput.of(view, began)) for view in views)
        self._runs = tuple(sorted(lines, key=lambda line: line.view.state is RunState.ENDED))

    def _read_keys(self, status: Status | None) -> Mapping[str, str]:
        ids = [] if status is None else [each for worker in status.workers for each in worker.tasks or ()]
        live = [line.view.id for line in self._runs or () if line.view.state is RunState.RUNNING]
        if not ids or not live or self._store is None:
            return NO_KEYS
        return keys_of_ids(self._store.database, live, ids)


class Throughput:
    """How many tasks of each run end per second, from one read to the next."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[float, int]] = {}

    def of(self, view: RunView, now: float) -> float | None:
        """Return the rate since the last call for this run; None at the first call, and for a run that has ended."""
        before = self._before.get(view.id)
        self._before[view.id] = (now, view.counts.done)
        if before is None or now <= before[0] or view.state is RunState.ENDED:
            return None
        return max(0, view.counts.done - before[1]) / (now - before[0])
