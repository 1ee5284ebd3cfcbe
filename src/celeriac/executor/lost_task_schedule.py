"""When to search for tasks that may be in no place, and for which.

Kombu's Redis transport loses a message now and then when a worker is killed, and a broker that is restarted may come
back empty. Nothing tells: so what has not moved for a while is searched for; and all that is out after an outage, and
when a worker has gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from celeriac.executor.interfaces import Missing, Whereabouts
from celeriac.executor.tracker import Tracked
from celeriac.task.state import State

SOON = 1.0  # seconds from the end of an outage: what the broker still has then, it keeps


class Searches:
    def __init__(self, whereabouts: Whereabouts, interval: float) -> None:
        """`interval`, in seconds, is the time between two searches, and how long a task moves before it is missed."""
        self._whereabouts, self._interval = whereabouts, interval
        self.due = float("-inf")
        self._everything = self._in_haste = False

    def after_outage(self, now: float) -> None:
        self.due, self._everything = now + SOON, True

    def at_once(self, now: float) -> None:
        """For what an earlier executor left: nothing moves while everybody waits for us."""
        self.due, self._everything, self._in_haste = now, True, True

    def look(self, out: Iterable[Tracked], now: float) -> Collection[Missing]:
        """What was found in no place since the last call. Begins a search if it is time for one."""
        alarmed = self._whereabouts.alarmed
        if alarmed or (now >= self.due and not self._whereabouts.busy):
            since = now if self._everything or alarmed else now - self._interval
            wanted = (t.task for t in out if t.state in WITH_OTHERS and t.moved_at <= since)
            self._whereabouts.look_for(wanted, asked=now, in_haste=self._in_haste)
            self.due, self._everything, self._in_haste = now + self._interval, False, False
        return self._whereabouts.missing()


WITH_OTHERS = {State.QUEUED, State.RUNNING}
