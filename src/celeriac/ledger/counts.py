"""The numbers of a run's tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from celeriac.ledger.codec import stored_time
from celeriac.ledger.prepared import COUNT_TASKS
from celeriac.task.state import State

if TYPE_CHECKING:
    from celeriac.ledger.statement import AnyConnection

IN_FLIGHT = (State.PUBLISHING.value, State.QUEUED.value, State.RUNNING.value)
"""The states of a task that was given to the publisher and has not ended."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a run's tasks by state. They are stored as JSON: `name` gives a field its stored name."""

    succeeded: int = 0
    failed: int = 0
    revoked: int = 0
    """Revoked after they started."""

    never_ran: int = 0
    """Ended before they started."""

    waiting: int = 0
    in_flight: int = msgspec.field(default=0, name="out")
    last_change: float | None = msgspec.field(default=None, name="last_move")
    """Seconds since the epoch."""

    @property
    def tasks(self) -> int:
        """How many tasks the run has."""
        return self.succeeded + self.failed + self.revoked + self.never_ran + self.unfinished

    @property
    def unfinished(self) -> int:
        """How many tasks have not ended."""
        return self.waiting + self.in_flight

    @property
    def done(self) -> int:
        """How many tasks have ended."""
        return self.tasks - self.unfinished


def unrecorded_of(total: Any, counts: Counts) -> int:
    """Return how many of a run's `total` tasks have no row yet. The total of a run without a file is None."""
    return max(0, total - counts.tasks) if isinstance(total, int) else 0


def count_tasks(connection: AnyConnection, run: int) -> Counts:
    """Count the tasks of a run. Reads each task: a million take about a second."""
    numbers: dict[str, int] = {}
    last_change: float | None = None
    for state, has_run, number, changed_at in COUNT_TASKS.execute(connection, {"of_run": run}):
        field = counts_field(state_of(state), has_run=bool(has_run))
        numbers[field] = numbers.get(field, 0) + number
        last_change = max(last_change or 0.0, stored_time(changed_at) or 0.0) or None
    return Counts(**numbers, last_change=last_change)


def state_of(text: str) -> State:
    """Return the state of this name. A malformed one counts as a failure."""
    return State(text) if text in set(State) else State.FAILED


def counts_field(state: State, *, has_run: bool) -> str:
    """Return the field of `Counts` that counts a task."""
    match state:
        case State.SUCCESS:
            return "succeeded"
        case State.FAILED:
            return "failed"
        case State.REVOKED if has_run:
            return "revoked"
        case State.WAITING:
            return "waiting"
        case _ if state in IN_FLIGHT:
            return "in_flight"
    return "never_ran"


def encode_counts(counts: Counts) -> str:
    """Return the JSON of the counts, for the run's row."""
    return msgspec.json.encode(counts).decode()
