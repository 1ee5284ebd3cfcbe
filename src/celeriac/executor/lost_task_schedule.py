"""Decide when to scan for lost tasks, and which tasks to scan for.

Kombu's Redis transport can lose a message when a worker is killed, and a broker may restart empty. Neither is reported.
So tasks whose state has not changed for a while are scanned for regularly; all tasks in flight are scanned for after an
outage and when a worker has died. The decisions are pure: the detector does the I/O, and the caller passes the time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from celeriac.executor.interfaces import LostTask, LostTaskDetector
from celeriac.executor.tracker import Tracked
from celeriac.task.state import State

DELAY_AFTER_OUTAGE = 1.0  # seconds from the end of an outage until the scan; then the broker has all its messages again
SENT_STATES = {State.QUEUED, State.RUNNING}


class LostTaskSchedule:
    """The time and extent of the next scan."""

    def __init__(self, detector: LostTaskDetector, interval: float) -> None:
        """`interval`, in seconds, is the time between two scans. A regular scan covers the tasks whose state has not
        changed for that time."""
        self._detector, self._interval = detector, interval
        self._next_scan = float("-inf")
        self._scan_all = self._is_urgent = False

    @property
    def due(self) -> float:
        """The time of the next regular scan. While a scan is under way, which an outage can make last for hours, there
        is none."""
        return float("inf") if self._detector.is_scanning else self._next_scan

    def after_outage(self, now: float) -> None:
        """Schedule a scan for all tasks: the broker or the result backend is available again."""
        self._next_scan, self._scan_all = now + DELAY_AFTER_OUTAGE, True

    def scan_now(self, now: float) -> None:
        """Schedule an urgent scan for all tasks at once: tasks of an earlier executor were taken over."""
        self._next_scan, self._scan_all, self._is_urgent = now, True, True

    def poll(self, in_flight: Iterable[Tracked], now: float) -> Collection[LostTask]:
        """Begin a scan if one is due. Return the lost tasks found since the last call."""
        has_news = self._detector.has_news
        if has_news or (now >= self._next_scan and not self._detector.is_scanning):
            changed_before = now if self._scan_all or has_news else now - self._interval
            # Whoever iterates later skips the tasks that have changed meanwhile, whose results would be ignored anyway.
            tasks = (t.task for t in in_flight if t.state in SENT_STATES and t.moved_at <= changed_before)
            self._detector.scan(tasks, requested_at=now, urgent=self._is_urgent)
            self._next_scan, self._scan_all, self._is_urgent = now + self._interval, False, False
        return self._detector.take_lost()

    def is_held(self, message_id: str) -> bool:
        """Return whether the lease of a live worker lists the task."""
        return self._detector.is_held(message_id)
