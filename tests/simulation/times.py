"""Tasks with `not_before` and `deadline`: times of the wall clocks, which differ by some seconds.

No task is sent before its time on the executor's clock. None starts after its deadline on the clock of its worker, and
none is tried again then.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from msgspec.structs import replace

from celeriac.executor.executor import CeleryExecutor
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.worker.lease_manager import CLAIM_VALIDITY
from tests.simulation.features import Feature
from tests.simulation.jobs import Job
from tests.simulation.primitives import wall
from tests.simulation.supervisor import Run
from tests.simulation.world import EPOCH

START_WITHIN = 60.0  # seconds from the begin of a history until the `not_before` of a task, at most
DEADLINE_WITHIN = 90.0  # the same for a deadline
MIN_TIME = 5.0  # seconds from `not_before` until the deadline
CLOCK_ERROR = 5.0  # seconds that a wall clock is wrong, at most, besides its rate
MAX_START_DELAY = CLAIM_VALIDITY * 1.03  # seconds from the worker's look at the deadline until the start


class Times(Feature):
    """The times of one history."""

    clock_error = CLOCK_ERROR

    def changed(self, task: Task, random: Random) -> Task:
        not_before = EPOCH + random.uniform(0, START_WITHIN) if random.random() < 0.3 else None
        deadline = None
        if random.random() < 0.5:
            deadline = max(EPOCH + random.uniform(0, DEADLINE_WITHIN), (not_before or 0.0) + MIN_TIME)
        return replace(task, not_before=not_before, deadline=deadline)

    def published(self, tasks: Sequence[Task], executor: CeleryExecutor) -> None:
        """Check those that are sent for the first time. It may be an earlier executor, and its clock, that has sent
        what is sent once more."""
        for task in tasks:
            is_first = not executor._lifecycle.unconfirmed.get(task.key)
            if is_first and task.not_before is not None and wall() < task.not_before:
                self.history.fail(f"{task.key} is sent {task.not_before - wall():.3f} s before its time")

    def started(self, job: Job, run: Run, running: Sequence[tuple[Job, Run]]) -> None:
        deadline = job.task.deadline
        if deadline is not None and wall() >= deadline + MAX_START_DELAY:
            self.history.fail(f"{job.task.key} starts {wall() - deadline:.3f} s after its deadline")

    def may_be_revoked(self, job: Job) -> bool:
        """Return whether the deadline is near. An executor whose clock is late cannot know why another one, which was
        killed, has cancelled a task."""
        now, deadline = self.history.world.now, job.task.deadline
        return deadline is not None and abs(EPOCH + now - deadline) < 2 * CLOCK_ERROR + now * 0.05

    def told(self, job: Job, event: Event) -> None:
        deadline = job.task.deadline
        if event.reason is Reason.DEADLINE:
            latest = EPOCH + self.history.world.now * 1.025 + 2 * CLOCK_ERROR
            if deadline is None or latest < deadline:
                self.history.fail(f"{event.key} has failed for a deadline that has not passed")
        is_retry = event.state is State.WAITING and event.reason not in (None, Reason.PUBLISH_ERROR)
        if is_retry and deadline is not None and event.when + (event.retry_in or 0.0) >= deadline:
            self.history.fail(f"{event.key} is tried again after its deadline")
