"""Parts of the product that only a share of the histories uses.

Each of them draws from a random stream of its own: a history without it is as it was before.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from celeriac.executor.executor import CeleryExecutor
from celeriac.task.event import Event
from celeriac.task.task import Task
from tests.simulation.jobs import Job
from tests.simulation.supervisor import Run

if TYPE_CHECKING:
    from tests.simulation.history import History


class Feature:
    """A feature of one history, which does nothing by itself."""

    share = 0.25
    """The part of the histories that use it."""

    points: ClassVar[dict[str, int]] = {}
    """The requests that a fault may hit, besides those of all histories, with how often each is chosen."""

    needs_inputs = False
    """Whether a shared ledger has the table of the inputs of runs, which each look at it reads."""

    clock_error = 3600.0
    """Seconds that a wall clock is wrong when its process starts, at most."""

    def __init__(self, history: History, random: Random) -> None:
        self.history = history

    def changed(self, task: Task, random: Random) -> Task:
        """Return a task as this feature wants it."""
        return task

    def settings(self) -> dict[str, Any]:
        """Return fields of the executor's `Config`."""
        return {}

    def submitted(self, run: str, row: int) -> None:
        """Do what the client of a submitted run does next. `row` is the id of the run."""

    def before_heartbeat(self, executor: CeleryExecutor) -> None:
        """Do what another process asks of an executor."""

    def holds_back(self, task: Task, executor: CeleryExecutor) -> bool:
        """Return whether a ready task may wait although a less urgent one is sent."""
        return False

    def started(self, job: Job, run: Run, running: Sequence[tuple[Job, Run]]) -> None:
        """Check the start of a command. `running` has it, and all others that run."""

    def published(self, tasks: Sequence[Task], executor: CeleryExecutor) -> None:
        """Check a batch that is about to be sent."""

    def may_be_revoked(self, job: Job) -> bool:
        """Return whether a task may end as revoked although that was not asked for."""
        return False

    def told(self, job: Job, event: Event) -> None:
        """Check an event."""


def features_of(history: History, *kinds: type[Feature]) -> list[Feature]:
    """Return the features that the seed of a history gives it."""
    features = []
    for kind in kinds:
        random = Random(f"{history.seed} {kind.__name__}")
        if random.random() < kind.share:
            feature = kind(history, random)
            for job in history.jobs.values():
                job.task = feature.changed(job.task, random)
            features.append(feature)
    return features
