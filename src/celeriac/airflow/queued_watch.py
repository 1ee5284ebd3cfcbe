"""Say in the scheduler's log why a task instance is still queued: once, and again every ten minutes.

    workloads that have not started ─► QueuedWatch: which are due? ─► Airflow's database: still queued? ─► log

Nothing here changes or fails a task. A look costs a pass over the workloads, and if one is due, a query and some lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from celeriac.airflow import adoption, versions
from celeriac.airflow.options import Options, invalid_option
from celeriac.airflow.submitted import SubmittedWorkloads
from celeriac.executor.requests import Explanation
from celeriac.log_lines import logger_for

MAX_INTERVAL = 5.0  # seconds between two looks
MAX_LINES = 10  # in one look
REPEAT_AFTER = 600.0  # seconds until a task instance is named again

log = logger_for(__name__)


def queued_limit(conf: Any) -> float:
    """Return [celeriac] explain_queued_after, in seconds; 0 means never. Raises `InvalidAirflowConfig`."""
    seconds = Options(conf).number("celeriac", "explain_queued_after")
    if not 0 <= seconds < float("inf"):
        problem = f"{seconds!r} is not a number of seconds, 0 or more"
        raise invalid_option("celeriac", "explain_queued_after", problem, "set for example 60, or 0 for never")
    return seconds


class QueuedWatch:
    """Decides of which task instances the log says why they are queued. It keeps only times."""

    def __init__(self, after: float) -> None:
        """`after`, in seconds, is how long a task instance waits before it is named; 0 means that none is."""
        self._after = after
        self._next_look = float("-inf")
        self._due_at: dict[str, float] = {}
        """When each waiting task instance is named next, by its id."""

    def is_time(self, now: float) -> bool:
        return self._after > 0 and now >= self._next_look

    def due(self, waiting: Iterable[str], now: float) -> list[str]:
        """Return the ids to look at now, those that wait longest first. `waiting` are all that have not started."""
        self._next_look = now + min(MAX_INTERVAL, self._after)
        self._due_at = {ti_id: self._due_at.get(ti_id, now + self._after) for ti_id in waiting}
        due = sorted((at, ti_id) for ti_id, at in self._due_at.items() if at <= now)
        chosen = [ti_id for _, ti_id in due[:MAX_LINES]]
        self._due_at |= dict.fromkeys(chosen, now + REPEAT_AFTER)
        return chosen


class QueuedLog:
    """Looks at the workloads of one executor, and logs."""

    def __init__(
        self,
        executor: Any,
        submitted: SubmittedWorkloads,
        explain: Callable[[str], Explanation | None],
        *,
        after: float,
    ) -> None:
        self._executor, self._submitted, self._explain = executor, submitted, explain
        self._watch = QueuedWatch(after)

    def look(self) -> None:
        """Log what is due. The scheduler calls this in each heartbeat."""
        now = time.monotonic()
        if not self._watch.is_time(now):
            return
        due = self._watch.due(self._waiting(), now)
        if not due:
            return
        for queued in adoption.read_queued(due) or ():
            explanation = self._explain(queued.id)
            if explanation is not None:
                log.warning("%s %s: %s", queued.name, queued.wait, explanation.now.words)

    def _waiting(self) -> Iterable[str]:
        """Return the ids of the task instances that have not started, as far as this executor knows."""
        sent = {str(each.ti_id) for each in self._submitted if each.ti_id is not None and not each.has_started}
        unsent = (
            str(workload.ti.id)
            for queue in versions.executor_queues(self._executor)
            for workload in queue.values()
            if isinstance(workload, versions.TASK)
        )
        return sent.union(unsent)
