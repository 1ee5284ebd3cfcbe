"""Decide when to send again after a failure, and when to give up.

Two back-offs: one for all sending, while the broker takes nothing, and one for each task that could not be sent. The
decisions are pure: the dispatcher passes the time and does the sending.
"""

from __future__ import annotations

from random import Random

from celeriac.config.executor_config import Config
from celeriac.executor.backoff import backoff
from celeriac.executor.circuit_breaker import CircuitBreaker
from celeriac.task.task import TaskKey


class PublishRetries:
    """The failures to send: of the broker, and of each task. All times are seconds on the executor's clock."""

    def __init__(self, config: Config, random: Random) -> None:
        self._config = config
        self._random = random
        self._broker = CircuitBreaker(
            "the broker", first_delay=config.publish_backoff, max_delay=config.publish_backoff_max, random=random
        )
        self.counts: dict[TaskKey, int] = {}
        """Failed attempts to send, by task: `ExecutorStats.task_publish_retries`. Sent tasks are not included."""

        self._first_failed_at: dict[TaskKey, float] = {}

    @property
    def resume_at(self) -> float:
        """The time until which nothing is sent."""
        return self._broker.retry_at

    @property
    def is_broker_failing(self) -> bool:
        """Whether nothing of the last batch could be sent."""
        return self._broker.is_open

    def paused(self, now: float) -> bool:
        """Return whether sending pauses, because the last batch could not be sent."""
        return not self._broker.allows(now)

    def pause(self, now: float) -> float:
        """Take note that nothing of a batch could be sent. Return how long to wait, in seconds.

        The publisher logs the outage, so the breaker's line is not logged.
        """
        self._broker.record_failure(now, "")
        return self._broker.delay

    def resume(self, now: float) -> bool:
        """Take note that something was sent. Return whether the broker was unavailable before."""
        was_unavailable = self._broker.is_open
        self._broker.record_success(now)
        return was_unavailable

    def failed(self, key: TaskKey, now: float) -> float | None:
        """Count a failed attempt to send a task. Return the seconds to wait before the next, or None to give up."""
        self.counts[key] = attempts = self.counts.get(key, 0) + 1
        first_failed_at = self._first_failed_at.setdefault(key, now)
        max_retries = self._config.task_publish_max_retries
        if (
            max_retries is not None and attempts > max_retries
        ) or now - first_failed_at >= self._config.publish_deadline:
            return None
        return backoff(self._config.publish_backoff, attempts, self._config.publish_backoff_max, self._random)

    def forget(self, key: TaskKey) -> None:
        """Drop the count of a task that was sent or has ended."""
        self.counts.pop(key, None)
        self._first_failed_at.pop(key, None)
