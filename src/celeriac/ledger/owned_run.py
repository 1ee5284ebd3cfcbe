"""A submitted run that this process owns: its counts, and how far its tasks are loaded. No SQL here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from celeriac.task.state import State
from celeriac.task.task import TaskKey


class RunKey(NamedTuple):
    """The key of a task in an executor that has several runs."""

    run: str
    """The run's name."""

    key: str

    def __str__(self) -> str:
        return f"{self.run}/{self.key}"

    def __repr__(self) -> str:
        return repr(str(self))


@dataclass(slots=True, eq=False)
class OwnedRun:
    """A run of `OwnedRuns`."""

    id: int
    name: str
    number_offset: int
    """Added to the executor's event numbers, so that they are above the numbers of the run's earlier owners."""

    total: int
    """How many tasks it has."""

    previous_owner: str | None
    """The label of the dead owner that had it before."""

    loaded: int = 0
    """How many tasks were loaded; all were unfinished then."""

    ended: Counter[State] = field(default_factory=Counter)
    """How many of the loaded tasks have ended, by state. Counts only ends that the ledger holds."""

    is_loaded: bool = False
    is_loading_waiting: bool = False
    """Whether the tasks in flight are loaded, and the waiting ones come next."""

    load_position: tuple[int, int] | None = None
    """The priority and the place of the last loaded task, in flight or waiting. Loading continues after it."""

    loaded_in_flight: set[str] = field(default_factory=set)
    """The keys of the tasks loaded in flight, while the run is loading: they may be waiting by now."""

    @property
    def unfinished(self) -> int:
        """How many loaded tasks have not ended."""
        return self.loaded - self.ended.total()

    def add_batch(self, rows: Sequence[Any], *, is_last: bool) -> list[Any]:
        """Record a batch of rows, and return those that were not loaded before. `is_last` says whether it is the last
        batch of the tasks in flight, or of the waiting ones."""
        self.load_position = (rows[-1].priority, rows[-1].place) if rows and not is_last else None
        if self.is_loading_waiting:
            rows = [row for row in rows if row.key not in self.loaded_in_flight]
            self.is_loaded = is_last
        else:
            self.loaded_in_flight.update(row.key for row in rows)
            self.is_loading_waiting = is_last
        if self.is_loaded:
            self.loaded_in_flight.clear()
        self.loaded += len(rows)
        return list(rows)


def run_key(key: TaskKey) -> RunKey:
    """Return the key as a `RunKey`: an executor of `OwnedRuns` has no other keys."""
    return cast(RunKey, key)
