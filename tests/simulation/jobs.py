"""The tasks of one history, and what their commands do."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from celeriac.task.event import Event
from celeriac.task.task import OnWorkerLost, Task
from tests.simulation.supervisor import Run

ENDLESS = 100_000.0  # seconds that a command runs which must be stopped
DURATIONS = (0.1, 0.1, 1.0, 1.0, 5.0, 5.0, 30.0, 60.0)  # seconds that a command runs, at most
DUE_WITHIN = (1.0, 10.0, 40.0)  # seconds in which all jobs are queued: one of these
CANCELLED_WITHIN = 30.0  # seconds in which a job that is cancelled is


@dataclass
class CommandPlan:
    """Tell what a command does: for how long it runs, its exit status, and how long it takes to end after TERM."""

    duration: float
    status: int
    time_to_end: float


@dataclass
class Job:
    """A task, and what was seen of it."""

    task: Task
    due: float
    revoke_at: float | None = None
    starts: list[tuple[float, Run]] = field(default_factory=list)
    live: list[Run] = field(default_factory=list)
    attempts_ended: set[int] = field(default_factory=set)
    """The numbers of the events by which the ledger knows that an attempt was lost, or failed and is repeated."""

    handed_back: int = 0
    """How many starts were taken back: the worker has released the claim of a command that it had ended."""

    token: int = 0
    """The fencing token of the last start."""

    end: Event | None = None
    was_queued: bool = False
    revoked: bool = False
    is_forgotten: bool = False
    """Whether a failover has lost anything that the store had of it: then it may run twice."""

    has_succeeded: bool = False
    """Whether the success of an attempt was stored that was not fenced."""

    def plan(self, random: Random) -> CommandPlan:
        """Return what the next command of it does."""
        # If a failover has lost that a task was cancelled, and it runs after all, it must end by itself.
        if self.revoke_at is not None and random.random() < 0.5 and not self.is_forgotten:
            duration = ENDLESS
        else:
            duration = random.choice(DURATIONS) * random.random()
        time_to_end = random.uniform(0.0, 3.0) if random.random() < 0.7 else ENDLESS
        return CommandPlan(duration, 0 if random.random() < 0.8 else 1, time_to_end)


def new_jobs(random: Random) -> dict[str, Job]:
    """Return the jobs of one history. Some need the one before, and are queued with it."""
    jobs: dict[str, Job] = {}
    due_within = random.choice(DUE_WITHIN)
    before: Job | None = None
    for n in range(random.randint(4, 10)):
        needs: tuple[str, ...] = (str(before.task.key),) if before is not None and random.random() < 0.2 else ()
        task = Task(
            key=f"k{n}",
            command=("true",),
            priority=random.randint(0, 3),
            retries=random.choice((0, 0, 2)),
            retry_delay=random.uniform(0.1, 5.0),
            on_worker_lost=OnWorkerLost.FAIL if random.random() < 0.15 else OnWorkerLost.RETRY,
            needs=needs,
        )
        due = before.due if needs and before is not None else random.uniform(0, due_within)
        revoke_at = due + random.uniform(0, CANCELLED_WITHIN) if random.random() < 0.2 else None
        before = jobs[f"k{n}"] = Job(task, due, revoke_at)
    return jobs
