"""Check that jobs can start under the limits of a run, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from celeriac.config.executor_config import Config
from celeriac.errors import InvalidTask
from celeriac.executor.slots import Slots, check_concurrency_key
from celeriac.runs.job_file import BadJobs, Jobs, PlainJobs, Problem
from celeriac.task.amounts import Amounts
from celeriac.task.task import Task


class TaskCheck:
    """Checks that tasks can start under the limits of a configuration."""

    def __init__(self, config: Config, *, is_local: bool) -> None:
        """If the tasks do not run in this process, a worker with enough for them may come later."""
        self._slots, self._limited_keys = Slots(config.parallelism, config.queue_limits), config.limited_keys
        self.is_local = is_local
        if is_local:
            self._slots.resources.limit(partial(amounts_here, config))

    def __call__(self, task: Task, file: str, line: int | None = None) -> Task | Problem:
        """Return the task, or the problem for which it could never start."""
        try:
            self._slots.check(task)
            check_concurrency_key(task, self._limited_keys)
        except InvalidTask as error:
            return problem_of(task, error, file, line)
        return task


def amounts_here(config: Config) -> Amounts:
    """Return what tasks of this process may use together. Raise `InvalidConfig` for more GPUs than there are."""
    from celeriac.worker.machine import machine_for  # late: few tasks name resources

    return machine_for(config).amounts


def check_limits(
    jobs: Jobs | PlainJobs, check: TaskCheck, file: str, find_lines: Callable[[], Mapping[str, int]] = dict
) -> None:
    """Raise `BadJobs` for tasks that could never start. `find_lines` returns the line of each key, if it is known."""
    if not any(isinstance(check(task, file), Problem) for task in jobs.samples()):
        return
    lines = find_lines()
    checked = (check(task, file, lines.get(str(task.key))) for task in jobs.as_tasks())
    raise BadJobs(result for result in checked if isinstance(result, Problem))


def problem_of(task: Task, error: InvalidTask, file: str, line: int | None) -> Problem:
    return Problem(file, line, error.field, f"task {task.key!r} {error.problem}", error.remedy)
