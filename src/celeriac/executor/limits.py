"""Limit how many tasks of a concurrency key run at once, and how many of a key or of a queue start in a time.

    dispatcher ─► full_limit: is a limit of this task known to be full? ─► it is set aside
               ─► reserve: one request for the whole batch ─► store of places ─► a refused task is set aside
    lifecycle  ─► started, free

The store decides, for all executors that share it. What this executor holds and what was refused a moment ago is known
here, so that it asks for no more than it may get.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf

from msgspec import Struct

from celeriac.config.executor_config import ALL_KEYS, Config
from celeriac.config.rate import parse_rate
from celeriac.executor.interfaces import PlaceStore
from celeriac.executor.limit import Limit, PlaceRequest, Refusal
from celeriac.task.task import Task, TaskKey


class Full(Struct, frozen=True):
    """A limit that had no place when it was asked for one."""

    refusal: Refusal
    until: float
    """When it is worth asking again, on the executor's clock."""


class Limits:
    """The limits of one executor, and the places that its tasks in flight hold."""

    def __init__(self, config: Config, places: PlaceStore) -> None:
        self._places = places
        self._held: dict[TaskKey, PlaceRequest] = {}
        self._own: Counter[str] = Counter()
        """How many tasks in flight hold a place, by limit."""

        self._asked: Counter[str] = Counter()
        """How many places of rates were chosen since the store was asked, by limit."""

        self._full: dict[str, Full] = {}
        self._refused: set[TaskKey] = set()
        """The tasks that hold no place, although they were chosen."""

        self._renew_at = inf

        self.change(config, ())

    def change(self, config: Config, in_flight: Iterable[Task]) -> None:
        """Take other limits. The tasks in flight keep their places, and those that have none yet count for a limit of
        their key."""
        self._numbers = dict(config.concurrency_limits)
        self._key_rates = parsed(config.concurrency_rates)
        self._queue_rates = parsed(config.queue_rates)
        self._full.clear()
        if requests := [request for task in in_flight if (request := self._hold_more(task)) is not None]:
            self._places.reserve(requests)  # what is refused runs all the same
            self.renew_at_once()

    def _hold_more(self, task: Task) -> PlaceRequest | None:
        """Take note that a task in flight counts for new limits. Return the request for their places."""
        before = () if (held := self._held.get(task.key)) is None else held.limits
        names = {limit.name for limit in before}
        more = tuple(limit for limit in self.of(task) if limit.period is None and limit.name not in names)
        if not more:
            return None
        self._held[task.key] = PlaceRequest(task.message_id, before + more)
        self._own.update(limit.name for limit in more)
        return PlaceRequest(task.message_id, more)

    def of(self, task: Task) -> tuple[Limit, ...]:
        """Return the limits of a task."""
        limits = []
        key, queue = task.concurrency_key, task.queue
        if key is not None:
            if (number := self._numbers.get(key, self._numbers.get(ALL_KEYS))) is not None:
                limits.append(Limit(f"key:{key}", number))
            if (rate := self._key_rates.get(key, self._key_rates.get(ALL_KEYS))) is not None:
                limits.append(Limit(f"key-rate:{key}", *rate))
        if (rate := self._queue_rates.get(queue)) is not None:
            limits.append(Limit(f"queue-rate:{queue}", *rate))
        return tuple(limits)

    # — choose —

    def full_limit(self, task: Task, now: float) -> Limit | None:
        """Return a limit of a task that has no place for it, as far as that is known without asking."""
        return next((limit for limit in self.of(task) if self.room(limit, now) <= 0), None)

    def begin_batch(self, now: float) -> None:
        """Forget the refusals after which it is worth asking again, and what the last batch asked for."""
        self._asked.clear()
        if self._full:
            self._full = {name: full for name, full in self._full.items() if full.until > now}

    def room(self, limit: Limit, now: float) -> int:
        """Return how many places of a limit there may be, as far as that is known without asking."""
        full = self._full.get(limit.name)
        if full is not None and full.until > now:
            return 0
        return limit.number - (self._own if limit.period is None else self._asked)[limit.name]

    def hold(self, task: Task) -> None:
        """Take note that a task was chosen, or is in flight."""
        if limits := self.of(task):
            self._held[task.key] = PlaceRequest(task.message_id, limits)
            self._own.update(limit.name for limit in limits)
            self._asked.update(limit.name for limit in limits)

    def reserve(self, keys: Sequence[TaskKey], now: float) -> dict[TaskKey, Refusal]:
        """Reserve the places of tasks that hold none yet, or renew them. Return the refusals by key."""
        asked = {self._held[key].id: key for key in keys if key in self._held}
        if not asked:
            return {}
        refusals = self._places.reserve([self._held[key] for key in asked.values()])
        self._refused.difference_update(asked.values())
        self._refused.update(asked[task_id] for task_id, refusal in refusals.items() if not refusal.detail)
        for refusal in refusals.values():
            self._full[refusal.limit.name] = Full(refusal, now + refusal.retry_in)
        self._renew_at = min(self._renew_at, now + (self._places.renew_interval or inf))
        return {asked[task_id]: refusal for task_id, refusal in refusals.items()}

    # — while they are in flight —

    def started(self, key: TaskKey) -> None:
        """Take note that a task was started."""
        if (request := self._held.get(key)) is not None:
            self._places.started(request)
            self._ask_again(request)

    def free(self, key: TaskKey, *, was_sent: bool) -> None:
        """Give up the places of a task, if it holds any. `was_sent` says that it may have started."""
        if (request := self._held.pop(key, None)) is not None:
            self._own.subtract(limit.name for limit in request.limits)
            if key in self._refused:
                self._refused.discard(key)
                return
            self._places.ended(request, was_sent=was_sent)
            self._ask_again(request)

    def _ask_again(self, request: PlaceRequest) -> None:
        """Ask again for the places that a task has just given up, or will at a known time. It makes no difference to a
        store that does not answer."""
        for limit in request.limits:
            full = self._full.get(limit.name)
            if full is not None and not full.refusal.detail and (limit.period is None or full.until == inf):
                del self._full[limit.name]

    def renew_at_once(self) -> None:
        """Renew the places of the tasks in flight with the next heartbeat: they were adopted."""
        if self._places.renew_interval is not None:
            self._renew_at = -inf

    @property
    def renew_due(self) -> float | None:
        """When the places of the tasks in flight are to be renewed. Infinite if they need no renewal."""
        return self._renew_at if self._held else None

    def renew_if_due(self, now: float) -> None:
        """Renew the places of the tasks in flight."""
        if self._held and now >= self._renew_at and self._places.renew_interval is not None:
            self._places.renew(list(self._held.values()))
            self._renew_at = now + self._places.renew_interval

    @property
    def next_try(self) -> float | None:
        """When a limit that was full may have a place. Infinite if that does not depend on time."""
        return min((full.until for full in self._full.values()), default=None)

    # — observe —

    def named(self) -> dict[str, tuple[int, int]]:
        """Return the number of each limit that has a name of its own, and how many places tasks in flight hold. Any
        thread may call this."""
        numbers = {f"key:{key}": number for key, number in self._numbers.items() if key != ALL_KEYS}
        numbers |= {f"key-rate:{key}": number for key, (number, _) in self._key_rates.items() if key != ALL_KEYS}
        numbers |= {f"queue-rate:{queue}": number for queue, (number, _) in self._queue_rates.items()}
        return {name: (number, self._own[name]) for name, number in numbers.items()}

    def explain(self, task: Task, now: float) -> tuple[str, dict[str, int | float | str]] | None:
        """Return why a task waits for one of its limits, in words and facts; None if it does not."""
        refused = (limit for limit in self.of(task) if limit.name in self._full)  # maybe a moment ago
        if (limit := self.full_limit(task, now) or next(refused, None)) is None:
            return None
        full = self._full.get(limit.name)
        facts: dict[str, int | float | str] = {"limit": limit.number}
        if full is not None and full.refusal.detail:
            return f"the places of {limit.subject} are not known: {full.refusal.detail}", facts
        if limit.period is not None:
            words = f"waits for the rate of {limit.subject}, {limit.rate}"
            if full is None or full.until == inf:  # the task that has the last place has not started
                return words, facts
            seconds = max(0.0, round(full.until - now, 3))
            return f"{words}: next try in {seconds:.1f} s", {**facts, "seconds": seconds}
        own = self._own[limit.name]
        taken = own if full is None else max(own, full.refusal.taken)
        words = f"waits for the limit of {limit.subject}: {taken:,} of {limit.number:,} run"
        elsewhere = f", {taken - own:,} of them of other executors" if taken > own else ""
        return words + elsewhere, {**facts, "running": taken, "own": own}


def parsed(rates: Mapping[str, str]) -> dict[str, tuple[int, float]]:
    """Return the number and the length of the window of each rate."""
    return {name: parse_rate("rate", text) for name, text in rates.items()}
