"""When a control server sends itself an echo, and when it replaces its connection to the broker."""

from __future__ import annotations

from celeriac.control.connection_monitor import (
    ECHO_INTERVAL,
    MAX_SILENCE,
    POLL_TIMEOUT,
    REPLY_EXPECTED,
    SHORT_POLL_TIMEOUT,
    ConnectionMonitor,
)

EARLIER = 0.001  # seconds


def test_a_connection_with_messages_is_neither_dead_nor_needs_an_echo():
    monitor = ConnectionMonitor(100.0)
    monitor.record_message(100.0 + MAX_SILENCE)
    now = 100.0 + MAX_SILENCE + ECHO_INTERVAL - EARLIER
    assert not monitor.needs_echo(now)
    assert not monitor.is_dead(now)


def test_a_silent_connection_gets_one_echo_in_each_interval():
    monitor = ConnectionMonitor(100.0)
    assert monitor.needs_echo(100.0 + ECHO_INTERVAL)
    monitor.record_echo(100.0 + ECHO_INTERVAL)
    assert not monitor.needs_echo(100.0 + 2 * ECHO_INTERVAL - EARLIER)
    assert monitor.needs_echo(100.0 + 2 * ECHO_INTERVAL)


def test_a_connection_on_which_no_echo_arrives_is_dead():
    monitor = ConnectionMonitor(100.0)
    monitor.record_echo(100.0 + ECHO_INTERVAL)
    assert not monitor.is_dead(100.0 + MAX_SILENCE - EARLIER)
    assert monitor.is_dead(100.0 + MAX_SILENCE)


def test_the_server_polls_more_often_while_a_reply_is_expected():
    monitor = ConnectionMonitor(100.0)
    assert monitor.poll_timeout(100.0) == POLL_TIMEOUT
    monitor.record_request(100.0)
    assert monitor.poll_timeout(100.0) == SHORT_POLL_TIMEOUT
    assert monitor.poll_timeout(100.0 + REPLY_EXPECTED) == POLL_TIMEOUT
