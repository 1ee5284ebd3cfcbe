"""Give an executor the plain jobs of a file, a few at a time, the most urgent first."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice
from operator import attrgetter
from typing import Any, TypeAlias

from celeriac.runs.job_file.draft import Draft
from celeriac.task.task import DEFAULT_QUEUE, NO_PRIORITY, Task, TaskKey

Levels: TypeAlias = Mapping[int, Sequence[int]]
"""The places of jobs in their file, by priority."""


def levels_of(drafts: Sequence[Draft]) -> Mapping[str, Levels]:
    """Return the levels of each queue."""
    if not drafts:
        return {}
    all_fields = list(map(attrgetter("fields"), drafts))
    if all_fields.count(fields := all_fields[0]) == len(drafts):
        return {queue_of(fields): {priority_of(fields): range(len(drafts))}}
    levels: dict[str, dict[int, array[int]]] = {}
    places_of: dict[int, array[int]] = {}
    for place, fields in enumerate(all_fields):
        places = places_of.get(id(fields))
        if places is None:
            of_queue = levels.setdefault(queue_of(fields), {})
            places = places_of[id(fields)] = of_queue.setdefault(priority_of(fields), array("Q"))
        places.append(place)
    return levels


def queue_of(fields: Mapping[str, Any]) -> str:
    queue: str = fields.get("queue", DEFAULT_QUEUE)
    return queue


def priority_of(fields: Mapping[str, Any]) -> int:
    priority: int = fields.get("priority", NO_PRIORITY)
    return priority


def slots_of(fields: Mapping[str, Any]) -> int:
    slots: int = fields.get("slots", 1)
    return slots


class PlainJobSource:
    """The plain jobs of one queue, the most urgent first: a `TaskSource`."""

    def __init__(self, drafts: Sequence[Draft], queue: str, levels: Levels, *, has_needs: bool = False) -> None:
        """With `has_needs` there is one level, and each job needs only earlier ones."""
        self.queue, self.has_needs, self._drafts = queue, has_needs, drafts
        urgent_first = sorted(levels, reverse=True)
        sizes = [len(levels[priority]) for priority in urgent_first]
        self._starts = dict(zip(urgent_first, accumulate(sizes, initial=0), strict=False))
        """Where each priority begins in `_places`."""

        self._places: Sequence[int] = levels[urgent_first[0]]
        """The places of the jobs, in the order in which they are taken."""

        if len(levels) > 1:
            self._places = array("Q", chain.from_iterable(levels[priority] for priority in urgent_first))
        self._left, self._next = len(self._places), 0
        self._taken_early: set[int] = set()
        """The places of the jobs that were taken by their names."""

    def __len__(self) -> int:
        return self._left

    def take(self, limit: int) -> list[tuple[int, Task]]:
        taken: list[tuple[int, Task]] = []
        while len(taken) < limit and self._next < len(self._places):
            place = self._places[self._next]
            self._next += 1
            if place not in self._taken_early:
                taken.append((place, self._drafts[place].build()))
        self._left -= len(taken)
        return taken

    def take_named(self, names: Collection[str]) -> list[tuple[int, Task]]:
        if self.has_needs:
            is_there = any(key in names for key in self.keys())
            return self.take(len(self)) if is_there else []
        taken = [(place, self._drafts[place].build()) for place in self._rest() if self._key(place) in names]
        self._taken_early.update(place for place, _ in taken)
        self._left -= len(taken)
        return taken

    def keys(self) -> Iterator[TaskKey]:
        return map(self._key, self._rest())

    def most_slots(self) -> int:
        fields_by_id = {id(draft.fields): draft.fields for draft in self._drafts}
        return max((slots_of(fields) for fields in fields_by_id.values() if queue_of(fields) == self.queue), default=0)

    def number_before(self, priority: int, place: int) -> int:
        starts = [start for other, start in self._starts.items() if other < priority]
        end = min(starts, default=len(self._places))
        if priority in self._starts:
            end = bisect_left(self._places, place, self._starts[priority], end)
        return sum(1 for _ in self._rest(end))

    def _rest(self, end: int | None = None) -> Iterator[int]:
        """Yield the places that are left, up to that of a position."""
        rest = islice(self._places, self._next, max(self._next, len(self._places) if end is None else end))
        return (place for place in rest if place not in self._taken_early)

    def _key(self, place: int) -> str:
        return str(self._drafts[place].key)
