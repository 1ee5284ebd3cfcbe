"""The checked jobs of a file, in its order: as tasks, or as drafts, which become tasks when they are needed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from operator import attrgetter

from msgspec import Struct

from celeriac.runs.job_file.draft import Draft
from celeriac.runs.job_file.job_source import PlainJobSource, levels_of
from celeriac.task.line_key import is_line_key
from celeriac.task.task import Command, Task, TaskKey


class JobIndex(Struct, frozen=True):
    """The jobs of a file by key."""

    size: int
    find: Callable[[TaskKey], Task | None]
    """Returns the job of a key."""

    needed: Collection[TaskKey] = ()
    """The keys of the jobs that others need."""

    def __len__(self) -> int:
        return self.size


class Jobs(list[Task]):
    """The tasks of a job file."""

    numbered: Collection[str] = ()
    """The keys of the tasks that have none of their own. Each is the number of a line."""

    def samples(self) -> Sequence[Task]:
        """Return tasks that have each queue, number of slots, concurrency key, and most of a resource that occurs."""
        return self

    def as_tasks(self) -> Jobs:
        return self

    def indexed(self) -> JobIndex:
        by_key = {task.key: task for task in self}
        return JobIndex(len(self), by_key.get, {need for task in self for need in task.needs})

    def without(self, keys: Collection[TaskKey]) -> Jobs:
        """Return the jobs with other keys than these."""
        return Jobs(task for task in self if task.key not in keys)

    def commands(self) -> Iterator[tuple[TaskKey, Command]]:
        """Yield the key and the command of each job."""
        return ((task.key, task.command) for task in self)


class PlainJobs:
    """Jobs that can be queued one after the other.

    If some need others, these are earlier ones, and all have the same queue and priority.
    """

    def __init__(self, drafts: Sequence[Draft], samples: Sequence[Task], *, has_needs: bool = False) -> None:
        """`samples` are tasks that have each queue, each number of slots and the most of each resource that occur."""
        self._drafts, self._samples, self.has_needs = drafts, samples, has_needs
        self._numbered: Sequence[Draft] = ()
        """The jobs without a key of their own, in order; set with `_by_line_key`."""

        self._by_line_key: dict[str, Command] | None = None
        """The commands of the jobs whose own keys look like the number of a line; made at the first use."""

    def __len__(self) -> int:
        return len(self._drafts)

    def __iter__(self) -> Iterator[Task]:
        """Build one task after the other."""
        return map(Draft.build, self._drafts)

    def samples(self) -> Sequence[Task]:
        """Return tasks that have each queue, number of slots, concurrency key, and most of a resource that occurs."""
        return self._samples

    def as_tasks(self) -> Jobs:
        """Build all tasks."""
        jobs = Jobs(self)
        jobs.numbered = self.numbered
        return jobs

    @property
    def numbered(self) -> Collection[str]:
        """The keys of the jobs that have none of their own. Each is the number of a line."""
        return {str(draft.key) for draft in self._drafts if isinstance(draft.key, int)}

    def indexed(self) -> JobIndex:
        by_key: dict[TaskKey, Draft] = {str(draft.key): draft for draft in self._drafts}

        def find(key: TaskKey) -> Task | None:
            draft = by_key.get(key)
            return None if draft is None else draft.build()

        return JobIndex(len(self), find)

    def command_of(self, key: str) -> Command | None:
        """Return the command of a job whose key is the number of its line, or looks like one; None for other keys."""
        if self._by_line_key is None:
            self._numbered = [draft for draft in self._drafts if isinstance(draft.key, int)]
            self._by_line_key = {
                draft.key: draft.command
                for draft in self._drafts
                if isinstance(draft.key, str) and is_line_key(draft.key)
            }
        if key in self._by_line_key or not key.isdecimal():
            return self._by_line_key.get(key)
        number = int(key)
        position = bisect_left(self._numbered, number, key=attrgetter("key"))
        found = self._numbered[position : position + 1]
        return next((draft.command for draft in found if draft.key == number), None)

    def without(self, keys: Collection[TaskKey]) -> PlainJobs:
        """Return the jobs with other keys than these."""
        drafts = [draft for draft in self._drafts if str(draft.key) not in keys]
        return PlainJobs(drafts, self._samples, has_needs=self.has_needs)

    def commands(self) -> Iterator[tuple[TaskKey, Command]]:
        """Yield the key and the command of each job."""
        return ((str(draft.key), draft.command) for draft in self._drafts)

    def sources(self) -> list[PlainJobSource]:
        """Return all jobs for an executor: a source for each queue."""
        if not self.has_needs:
            return [PlainJobSource(self._drafts, queue, levels) for queue, levels in levels_of(self._drafts).items()]
        sample = self._samples[0]
        levels = {sample.priority: range(len(self._drafts))}
        return [PlainJobSource(self._drafts, sample.queue, levels, has_needs=True)]
