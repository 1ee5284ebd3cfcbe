"""Decide when a connection to the broker counts as dead, from the times at which messages arrive.

no message for a while ─► send an echo to itself ─► the echo arrives: the connection works
                                                        └► no message for long: the connection is dead
"""

from __future__ import annotations

ECHO_INTERVAL = 5.0  # seconds without a message until an echo is sent, and between two echoes
MAX_SILENCE = 15.0  # seconds without a message until the connection counts as dead
POLL_TIMEOUT = 0.2  # seconds to wait for one message
SHORT_POLL_TIMEOUT = 0.02  # seconds; the same while the executor may reply at any moment
REPLY_EXPECTED = 2.0  # seconds after a request during which the executor may reply at any moment

NEVER = float("-inf")


class ConnectionMonitor:
    """The state of one connection. All times are seconds on one monotonic clock."""

    def __init__(self, now: float) -> None:
        self._message_at = now
        self._request_at = self._echo_at = NEVER

    def record_message(self, now: float) -> None:
        """Take note of a message: an echo, or a request of another process."""
        self._message_at = now

    def record_request(self, now: float) -> None:
        """Take note of a request that the executor will reply to."""
        self._request_at = now

    def record_echo(self, now: float) -> None:
        """Take note of an echo that was sent."""
        self._echo_at = now

    def is_dead(self, now: float) -> bool:
        """Return whether the connection should be replaced."""
        return now - self._message_at >= MAX_SILENCE

    def needs_echo(self, now: float) -> bool:
        """Return whether an echo should be sent."""
        return now - max(self._message_at, self._echo_at) >= ECHO_INTERVAL

    def poll_timeout(self, now: float) -> float:
        """Return for how many seconds to wait for a message before looking for replies of the executor."""
        return SHORT_POLL_TIMEOUT if now - self._request_at < REPLY_EXPECTED else POLL_TIMEOUT
