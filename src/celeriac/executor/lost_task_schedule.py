"""When to search for tasks that may be in no place, and for which.

Kombu's Redis transport loses a message now and then when a worker is killed, and a broker that is restarted may come
back empty. Nothing tells: so what has not moved for a while is searched for; and all that is out after an outage, and
when a worker has gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from celeriac.executor.interfaces import LostTask, LostTaskDetector
from celeriac.executor.tracker import Tracked
from celeriac.task.state import State

DELAY_AFTER_OUTAGE = 1.0  # seconds from the end of an outage: what the broker still has then, it keeps


class LostTaskSchedule:
    def __init__(self, detector: LostTaskDetector, interval: float) -> None:
        """`interval`, in seconds, is the time between two searches, and how long a task moves before it is missed."""
        self._detector, self._interval = detector, interval
        self.due = float("-inf")
        self._everything = self._urgent = False

    def after_outage(self, now: float) -> None:
        self.due, self._everything = now + DELAY_AFTER_OUTAGE, True

    def scan_now(self, now: float) -> None:
        """For what an earlier executor left: nothing moves while everybody waits for us."""
        self.due, self._everything, self._urgent = now, True, True

    def poll(self, out: Iterable[Tracked], now: float) -> Collection[LostTask]:
        """What was found in no place since the last call. Begins a search if it is time for one."""
        alarmed = self._detector.has_news
        if alarmed or (now >= self.due and not self._detector.is_scanning):
            since = now if self._everything or alarmed else now - self._interval
            wanted = (t.task for t in out if t.state in SENT_STATES and t.moved_at <= since)
            self._detector.scan(wanted, requested_at=now, urgent=self._urgent)
            self.due, self._everything, self._urgent = now + self._interval, False, False
        return self._detector.take_lost()


SENT_STATES = {State.QUEUED, State.RUNNING}
