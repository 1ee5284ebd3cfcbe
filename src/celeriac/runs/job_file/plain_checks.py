"""Check plain jobs, many at a time. A problem is not described: the file is then read line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from celeriac.executor.dependencies import cycles
from celeriac.runs.job_file.draft import Draft
from celeriac.task.amounts import NOTHING, Amounts, amounts_of, missing
from celeriac.task.task import Command, Task, check_command

UNSET = msgspec.UNSET
SEPARATE = ("key", "command")
OWN = ("env", "needs")
"""The fields that each job has for itself."""

SELDOM = ("artifacts",)
"""The fields that no plain job has."""

MAX_KEPT = 10_000  # combinations of fields


class NotPlain(Exception):
    """The file must be read line by line."""


class FieldSets(dict[tuple[Any, ...], Mapping[str, Any]]):
    """Maps the values of a job to its fields besides key and command, with the defaults.

    Many jobs share few combinations of values. Each is checked once: an invalid one raises `InvalidTask`.
    """

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        super().__init__()
        if "needs" in defaults:
            raise NotPlain
        self._defaults = defaults
        self._samples: dict[tuple[str, int, str | None], Task] = {}
        self._largest: dict[str, Task] = {}
        """For each resource, the task that needs most of it."""

        self.levels: set[tuple[str, int]] = set()
        """Each queue and priority that occurs."""

        self.has_needs = False
        """Whether a job needs another one."""

        self.parse: Callable[[tuple[Any, ...]], Mapping[str, Any]] = dict
        """Returns the fields that some values mean. No values are no fields."""

    @property
    def samples(self) -> list[Task]:
        """Tasks that have each queue, number of slots, concurrency key, and most of a resource that occurs."""
        return [*self._samples.values(), *self._largest.values()]

    def __missing__(self, values: tuple[Any, ...]) -> Mapping[str, Any]:
        fields = {**self._defaults, **self.parse(values)}
        task = Task(key="any", command="any", **fields)
        self._samples.setdefault((task.queue, task.slots, task.concurrency_key), task)
        self.levels.add((task.queue, task.priority))
        if (needs := amounts_of(task)) is not None:
            self._note_largest(task, needs)
        if len(self) < MAX_KEPT:
            self[values] = fields
        return fields

    def _note_largest(self, task: Task, needs: Amounts) -> None:
        for name in missing(needs, NOTHING):
            largest = self._largest.get(name)
            if largest is None or missing(needs, amounts_of(largest) or NOTHING).count(name):
                self._largest[name] = task


class Keys:
    """The keys of a file: those that jobs give, and the numbers of the lines of the other jobs."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._numbers: list[int] = []

    def add(self, given: Sequence[Any], numbers: Sequence[int]) -> Sequence[str | int]:
        """Return the key of each job, or its number if none is given (UNSET). Raise `NotPlain` for a bad key."""
        keys, own = given, given
        if UNSET in given:
            keys = [number if key is UNSET else key for key, number in zip(given, numbers, strict=True)]
            own = [key for key in keys if isinstance(key, str)]
            self._numbers += [key for key in keys if isinstance(key, int)]
        before = len(self._given)
        self._given.update(own)
        if "" in self._given or len(self._given) != before + len(own):
            raise NotPlain
        return keys

    def check(self) -> None:
        """Raise `NotPlain` if a job gives the number of a line that gives none."""
        if self._given and not self._given.isdisjoint(map(str, self._numbers)):
            raise NotPlain


def are_needs_earlier(drafts: Iterable[Draft]) -> bool:
    """Return whether each job needs only earlier jobs. Raise `NotPlain` for needs that cannot be met."""
    needs_of: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    is_earlier = True
    for draft in drafts:
        key = str(draft.key)
        if needs := draft.fields.get("needs"):
            needs_of[key] = needs
            is_earlier = is_earlier and seen.issuperset(needs)
        seen.add(key)
    if not is_earlier and (not all(map(seen.issuperset, needs_of.values())) or any(cycles(needs_of))):
        raise NotPlain
    return is_earlier


def check_commands(commands: Iterable[Command]) -> None:
    """Raise `InvalidTask` for a bad command."""
    for command in commands:
        if type(command) is not str or not command or command.isspace():
            check_command(command)
