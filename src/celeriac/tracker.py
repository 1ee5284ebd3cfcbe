"""The tasks that are out, and which of them are worth a look."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from celeriac.config import Config
from celeriac.priority_queue import Entry
from celeriac.state import State
from celeriac.task import Task, TaskKey


@dataclass(slots=True, kw_only=True)
class Tracked:
    """A task between the queue and its end. Everything about it that changes is here."""

    entry: Entry
    next_look_after: float
    state: State = State.PUBLISHING
    revoking: bool = False
    unreadable_since: float | None = None
    resend_at: float = 0.0
    """When to send it again, while nobody knows whether the broker has it."""

    @property
    def task(self) -> Task:
        return self.entry.task


class Tracker:
    """Looks at a task when a hint names it, and otherwise on a back-off of its own: soon first, then ever more rarely.

    So ten changes among 10,000 tasks cost ten looks, and a hint that was lost costs one interval.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._by_key: dict[TaskKey, Tracked] = {}
        self._by_id: dict[str, Tracked] = {}
        self._looks: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: TaskKey) -> bool:
        return key in self._by_key

    def __iter__(self) -> Iterator[Tracked]:
        return iter(list(self._by_key.values()))

    def watch(self, entry: Entry, now: float) -> Tracked:
        tracked = Tracked(entry=entry, next_look_after=self._config.first_look)
        message_id = entry.task.message_id
        self._by_key[entry.task.key] = self._by_id[message_id] = tracked
        heapq.heappush(self._looks, (now + self._config.first_look, message_id))
        return tracked

    def forget(self, tracked: Tracked) -> None:
        del self._by_key[tracked.task.key]
        del self._by_id[tracked.task.message_id]

    def get(self, key: TaskKey) -> Tracked | None:
        return self._by_key.get(key)

    def find(self, message_id: str) -> Tracked | None:
        return self._by_id.get(message_id)

    def due(self, hints: Iterable[str], now: float) -> set[str]:
        """The ids to look at now: those hinted at, and those whose time has come."""
        ids = {message_id for message_id in hints if message_id in self._by_id}
        while self._looks and self._looks[0][0] <= now:
            _, message_id = heapq.heappop(self._looks)
            tracked = self._by_id.get(message_id)
            if tracked is not None:
                ids.add(message_id)
                tracked.next_look_after = min(tracked.next_look_after * 2, self._config.reconcile_interval)
                heapq.heappush(self._looks, (now + tracked.next_look_after, message_id))
        return ids

    def next_look(self) -> float | None:
        while self._looks and self._looks[0][1] not in self._by_id:
            heapq.heappop(self._looks)
        return self._looks[0][0] if self._looks else None
