"""The checked jobs of a file, in its order: as tasks, or as drafts, which become tasks when they are needed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from celeriac.task.task import Command, Task, TaskKey

Draft: TypeAlias = tuple[str | int, Command]
"""The key of a job, or the number of its line if it has no key of its own; and its command."""


class Jobs(list[Task]):
    """The tasks of a job file."""

    numbered: Collection[str] = ()
    """The keys of the tasks that have none of their own. Each is the number of a line."""

    def samples(self) -> Sequence[Task]:
        """Return tasks that have each queue and each number of slots that occurs."""
        return self

    def as_tasks(self) -> Jobs:
        return self

    def commands(self) -> Iterator[tuple[TaskKey, Command]]:
        """Yield the key and the command of each job."""
        return ((task.key, task.command) for task in self)


class PlainJobs:
    """Jobs that give a command and perhaps a key. Their other fields are the defaults."""

    def __init__(self, drafts: Sequence[Draft], defaults: Mapping[str, Any]) -> None:
        """There is at least one draft. Raises `InvalidTask` if the defaults make no task of it."""
        self._drafts, self._defaults = drafts, defaults
        self._sample = self._build(drafts[0])

    def __len__(self) -> int:
        return len(self._drafts)

    def __iter__(self) -> Iterator[Task]:
        """Build one task after the other."""
        return map(self._build, self._drafts)

    def samples(self) -> Sequence[Task]:
        """Return a task that has the queue and the number of slots of all."""
        return [self._sample]

    def as_tasks(self) -> Jobs:
        """Build all tasks."""
        jobs = Jobs(map(self._build, self._drafts))
        jobs.numbered = {str(key) for key, _ in self._drafts if isinstance(key, int)}
        return jobs

    def commands(self) -> Iterator[tuple[TaskKey, Command]]:
        """Yield the key and the command of each job."""
        return ((str(key), command) for key, command in self._drafts)

    def build(self, start: int, end: int) -> list[Task]:
        """Build the tasks of a part."""
        return list(map(self._build, self._drafts[start:end]))

    def _build(self, draft: Draft) -> Task:
        fields: dict[str, Any] = {"key": str(draft[0]), "command": draft[1], **self._defaults}
        return Task(**fields)


class PlainJobSource:
    """Plain jobs that an executor takes from the first to the last: a `TaskSource`."""

    def __init__(self, jobs: PlainJobs) -> None:
        self._jobs, self._taken = jobs, 0

    def __len__(self) -> int:
        return len(self._jobs) - self._taken

    def take(self, limit: int) -> list[Task]:
        tasks = self._jobs.build(self._taken, self._taken + limit)
        self._taken += len(tasks)
        return tasks

    def take_keys(self) -> list[TaskKey]:
        keys = [key for key, _ in self._jobs.commands()][self._taken :]
        self._taken += len(keys)
        return keys
