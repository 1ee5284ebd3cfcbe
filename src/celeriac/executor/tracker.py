"""Track the tasks in flight, and decide whose results to read.

The decisions are pure: the caller passes the hints and the time, and reads the results.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from random import Random

from msgspec import Struct

from celeriac.config.executor_config import Config
from celeriac.executor.priority_queue import Entry
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

STEPS = 200  # steps of one long interval; the looks of one step are taken together
EARLIEST_FIRST, EARLIEST_NEXT = 0.5, 0.9
"""The shares of a long interval after which a task is looked at: tasks that were sent together are spread first."""

RATE_LIMIT_PAUSE = 0.1  # seconds between two reads while the rate limit allows no more looks


class Tracked(Struct, kw_only=True, gc=False):
    """A task in flight, with all of its state that changes."""

    entry: Entry
    next_look_after: float
    """Seconds until the next look, while changes are not pushed. While they are, the long interval after a look was
    planned."""

    state: State = State.PUBLISHING
    moved_at: float = float("-inf")
    """When the task entered that state."""

    started_at: float | None = None
    """When the executor learned that the task had started."""

    revoking: bool = False
    """Whether the task was revoked."""

    is_overdue: bool = False
    """Whether it was revoked, unless it had started, because its deadline had passed."""

    lost_detail: str | None = None
    """How it was lost, if it was revoked, unless it had started, because it is not sent again."""

    unreadable_since: float | None = None
    """The time since which its stored result cannot be decoded."""

    resend_at: float = 0.0
    """When to re-send the task, while it is unconfirmed."""

    @property
    def task(self) -> Task:
        return self.entry.task


class Tracker:
    """The tasks in flight, with the time of the next look at each. A look is one read of its result.

    A task is looked at when a hint names it, and at intervals without a hint. While changes are pushed, the interval is
    long. While they are not, it is short at first and doubles with each look; and when pushing ends or has a gap, all
    tasks are looked at within the short interval. So ten changes among 100,000 tasks cost little more than ten looks,
    and a lost hint delays a result by one interval.
    """

    def __init__(self, config: Config, random: Random) -> None:
        self._config, self._random = config, random
        self._by_key: dict[TaskKey, Tracked] = {}
        self._by_id: dict[str, Tracked] = {}
        self._look_times: list[float] = []
        """A heap of the times of the next looks."""

        self._ids_by_look_time: dict[float, list[str]] = {}
        """The ids to look at, by the time of the look."""

        self._pushed = False
        self._looks_left = float(config.reconcile_rate)
        self._refilled_at = float("-inf")

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: TaskKey) -> bool:
        return key in self._by_key

    def __iter__(self) -> Iterator[Tracked]:
        return iter(list(self._by_key.values()))

    def track(self, entry: Entry, now: float) -> Tracked:
        """Add a task."""
        tracked = Tracked(entry=entry, next_look_after=self._config.first_look)
        task = entry.task
        message_id = task.message_id
        self._by_key[task.key] = self._by_id[message_id] = tracked
        self._schedule_look(self._next_look_at(tracked, now), message_id)
        return tracked

    def untrack(self, tracked: Tracked) -> None:
        """Remove a task."""
        del self._by_key[tracked.task.key]
        del self._by_id[tracked.task.message_id]

    def get(self, key: TaskKey) -> Tracked | None:
        """Return the task of this key, if it is in flight."""
        return self._by_key.get(key)

    def find_by_id(self, message_id: str) -> Tracked | None:
        """Return the task whose present attempt has this Celery id, if it is in flight."""
        return self._by_id.get(message_id)

    def due(self, hints: Iterable[str], now: float, *, pushed: bool = False) -> set[str]:
        """Return the ids to look at now: the hinted ids, and the ids whose next look is due.

        `pushed` says that the hints are all changes since the last call.
        """
        if self._pushed and not pushed:
            self._schedule_all_soon(now)
        self._pushed = pushed
        ids = {message_id for message_id in hints if message_id in self._by_id}
        self._refill_rate_limit(now)
        while self._look_times and self._look_times[0] <= now and self._looks_left >= 1:
            due_ids = self._ids_by_look_time[self._look_times[0]]
            while due_ids and self._looks_left >= 1:
                message_id = due_ids.pop()
                tracked = self._by_id.get(message_id)
                if tracked is not None:
                    ids.add(message_id)
                    self._looks_left -= 1
                    if not pushed:
                        tracked.next_look_after = min(tracked.next_look_after * 2, self._config.reconcile_interval)
                    self._schedule_look(self._next_look_at(tracked, now), message_id)
            if not due_ids:
                del self._ids_by_look_time[heapq.heappop(self._look_times)]
        return ids

    def next_look(self) -> float | None:
        """Return the time of the next look."""
        while self._look_times and not self._any_in_flight(self._ids_by_look_time[self._look_times[0]]):
            del self._ids_by_look_time[heapq.heappop(self._look_times)]
        if not self._look_times:
            return None
        return max(self._look_times[0], self._refilled_at + RATE_LIMIT_PAUSE if self._looks_left < 1 else float("-inf"))

    def _schedule_look(self, time: float, message_id: str) -> None:
        ids = self._ids_by_look_time.get(time)
        if ids is None:
            self._ids_by_look_time[time] = [message_id]
            heapq.heappush(self._look_times, time)
        else:
            ids.append(message_id)

    def _any_in_flight(self, ids: list[str]) -> bool:
        """Return whether a task of these ids is in flight. Drop ids of other tasks from the end."""
        while ids and ids[-1] not in self._by_id:
            ids.pop()
        return bool(ids)

    def _next_look_at(self, tracked: Tracked, now: float) -> float:
        if not self._pushed:
            return now + tracked.next_look_after
        interval = self._config.reconcile_interval_pushed
        step = interval / STEPS  # times are rounded to steps, so that one read has many looks
        is_spread = tracked.next_look_after > self._config.reconcile_interval
        earliest = EARLIEST_NEXT if is_spread else EARLIEST_FIRST
        tracked.next_look_after = interval
        return (now + interval * (earliest + (1 - earliest) * self._random.random())) // step * step

    def _schedule_all_soon(self, now: float) -> None:
        interval = self._config.reconcile_interval
        for tracked in self._by_id.values():
            tracked.next_look_after = interval
        planned, self._ids_by_look_time, self._look_times = self._ids_by_look_time, {}, []
        for time, ids in planned.items():
            for message_id in ids:
                if message_id in self._by_id:
                    soon = now + interval * self._random.randint(1, STEPS) / STEPS
                    self._schedule_look(min(time, soon), message_id)

    def _refill_rate_limit(self, now: float) -> None:
        """Refill the rate limit: `reconcile_rate` looks per second, and at most as many at once."""
        rate = self._config.reconcile_rate
        if now > self._refilled_at:
            self._looks_left = min(rate, self._looks_left + (now - self._refilled_at) * rate)
            self._refilled_at = now
