"""The tasks that are out, and which of them are worth a look."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

from celeriac.config.executor_config import Config
from celeriac.executor.priority_queue import Entry
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

STEPS = 200  # in one long interval: at their ends, looks are taken together
RATE_LIMIT_PAUSE = 0.1  # seconds between two reads when all looks that the rate allows are taken


@dataclass(slots=True, kw_only=True)
class Tracked:
    """A task between the queue and its end. Everything about it that changes is here."""

    entry: Entry
    next_look_after: float
    state: State = State.PUBLISHING
    moved_at: float = float("-inf")
    """When it came into that state."""

    started_at: float | None = None
    """When its start was seen."""

    revoking: bool = False
    unreadable_since: float | None = None
    resend_at: float = 0.0
    """When to send it again, while nobody knows whether the broker has it."""

    @property
    def task(self) -> Task:
        return self.entry.task


class Tracker:
    """Looks at a task when a hint names it, and otherwise now and then by itself.

    While changes are pushed that is once in a long interval. While they are not, it is soon first and then ever more
    rarely; and when pushing ends or has a gap, everything that is out is looked at within the short interval. So ten
    changes among 100,000 tasks cost ten looks and a trickle, and a hint that was lost costs one interval.
    """

    def __init__(self, config: Config, random: Random) -> None:
        self._config, self._random = config, random
        self._by_key: dict[TaskKey, Tracked] = {}
        self._by_id: dict[str, Tracked] = {}
        self._looks: list[float] = []
        """The moments of the next looks, soonest first; and at each, the ids to look at:"""
        self._at: dict[float, list[str]] = {}
        self._pushed = False
        self._looks_allowed = float(config.reconcile_rate)
        self._counted_at = float("-inf")

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: TaskKey) -> bool:
        return key in self._by_key

    def __iter__(self) -> Iterator[Tracked]:
        return iter(list(self._by_key.values()))

    def track(self, entry: Entry, now: float) -> Tracked:
        tracked = Tracked(entry=entry, next_look_after=self._config.first_look)
        message_id = entry.task.message_id
        self._by_key[entry.task.key] = self._by_id[message_id] = tracked
        self._look_at(self._next_look_at(tracked, now), message_id)
        return tracked

    def untrack(self, tracked: Tracked) -> None:
        del self._by_key[tracked.task.key]
        del self._by_id[tracked.task.message_id]

    def get(self, key: TaskKey) -> Tracked | None:
        return self._by_key.get(key)

    def find_by_id(self, message_id: str) -> Tracked | None:
        return self._by_id.get(message_id)

    def due(self, hints: Iterable[str], now: float, *, pushed: bool = False) -> set[str]:
        """The ids to look at now: those hinted at, and those whose time has come. `pushed` says that the hints are all
        that has moved since the last call."""
        if self._pushed and not pushed:
            self._look_at_everything_soon(now)
        self._pushed = pushed
        ids = {message_id for message_id in hints if message_id in self._by_id}
        self._allow_looks(now)
        while self._looks and self._looks[0] <= now and self._looks_allowed >= 1:
            waiting = self._at[self._looks[0]]
            while waiting and self._looks_allowed >= 1:
                message_id = waiting.pop()
                tracked = self._by_id.get(message_id)
                if tracked is not None:
                    ids.add(message_id)
                    self._looks_allowed -= 1
                    tracked.next_look_after = min(tracked.next_look_after * 2, self._config.reconcile_interval)
                    self._look_at(self._next_look_at(tracked, now), message_id)
            if not waiting:
                del self._at[heapq.heappop(self._looks)]
        return ids

    def next_look(self) -> float | None:
        while self._looks and not self._wanted(self._at[self._looks[0]]):
            del self._at[heapq.heappop(self._looks)]
        if not self._looks:
            return None
        return max(self._looks[0], self._counted_at + RATE_LIMIT_PAUSE if self._looks_allowed < 1 else float("-inf"))

    def _look_at(self, moment: float, message_id: str) -> None:
        waiting = self._at.get(moment)
        if waiting is None:
            self._at[moment] = [message_id]
            heapq.heappush(self._looks, moment)
        else:
            waiting.append(message_id)

    def _wanted(self, ids: list[str]) -> bool:
        """Whether any of them is still out."""
        while ids and ids[-1] not in self._by_id:
            ids.pop()
        return bool(ids)

    def _next_look_at(self, tracked: Tracked, now: float) -> float:
        if not self._pushed:
            return now + tracked.next_look_after
        longest = self._config.reconcile_interval_pushed
        step = longest / STEPS  # many looks in one read, not one read for each
        return max(now + step, (now + longest * (0.5 + 0.5 * self._random.random())) // step * step)

    def _look_at_everything_soon(self, now: float) -> None:
        within = self._config.reconcile_interval
        for tracked in self._by_id.values():
            tracked.next_look_after = within
        before, self._at, self._looks = self._at, {}, []
        for moment, ids in before.items():
            for message_id in ids:
                if message_id in self._by_id:
                    soon = now + within * self._random.randint(1, STEPS) / STEPS
                    self._look_at(min(moment, soon), message_id)

    def _allow_looks(self, now: float) -> None:
        rate = self._config.reconcile_rate
        if now > self._counted_at:
            self._looks_allowed = min(rate, self._looks_allowed + (now - self._counted_at) * rate)
            self._counted_at = now
