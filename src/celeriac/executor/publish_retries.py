"""When to try sending again, and when to give up: what a broker that is away costs each task."""

from __future__ import annotations

from random import Random

from celeriac.config.executor_config import Config
from celeriac.executor.backoff import backoff
from celeriac.task.task import TaskKey


class PublishRetries:
    def __init__(self, config: Config, random: Random) -> None:
        self._config = config
        self._random = random
        self.counts: dict[TaskKey, int] = {}
        """Failed tries at sending, by task: `task_publish_retries`. A task that was sent is not in it."""

        self._first_failed: dict[TaskKey, float] = {}
        self._failures_in_a_row = 0
        self.resume_at = float("-inf")
        """Until when nothing is to be sent."""

    def paused(self, now: float) -> bool:
        """Whether the broker was away at the last try and is to be left alone a little longer."""
        return now < self.resume_at

    def pause(self, now: float) -> float:
        """Nothing of a whole batch could be sent. Answers how long to wait, in seconds."""
        self._failures_in_a_row += 1
        delay = self._delay(self._failures_in_a_row)
        self.resume_at = now + delay
        return delay

    def resume(self) -> bool:
        """Something was sent: the broker is there. Answers whether it was away before."""
        was_away, self._failures_in_a_row = self._failures_in_a_row > 0, 0
        self.resume_at = float("-inf")
        return was_away

    def failed(self, key: TaskKey, now: float) -> float | None:
        """Count one failed try. Answers how long to wait before the next, in seconds, or None to give up."""
        self.counts[key] = tries = self.counts.get(key, 0) + 1
        first = self._first_failed.setdefault(key, now)
        most = self._config.task_publish_max_retries
        if (most is not None and tries > most) or now - first >= self._config.publish_deadline:
            return None
        return self._delay(tries)

    def forget(self, key: TaskKey) -> None:
        self.counts.pop(key, None)
        self._first_failed.pop(key, None)

    def _delay(self, tries: int) -> float:
        return backoff(self._config.publish_backoff, tries, self._config.publish_backoff_max, self._random)
