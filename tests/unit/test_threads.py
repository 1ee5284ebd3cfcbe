"""Tests of the deadline thread and the wake-up."""

from __future__ import annotations

import selectors
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from celeriac.broker.deadline_thread import DeadlineThread
from celeriac.broker.wakeup import Wakeup
from tests.support.cli_runner import WAIT_TIMEOUT, until


@pytest.fixture
def thread() -> Iterator[DeadlineThread[Any]]:
    with closing(DeadlineThread[Any]("test")) as thread:
        yield thread


def test_a_call_returns_what_the_function_returns(thread):
    assert thread.call(lambda: 7, WAIT_TIMEOUT) == 7


def test_a_call_raises_what_the_function_raises(thread):
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0, WAIT_TIMEOUT)
    assert thread.call(lambda: 7, WAIT_TIMEOUT) == 7


def test_a_call_that_takes_too_long_does_not_block_the_caller(thread):
    gate = threading.Event()
    with pytest.raises(TimeoutError):
        thread.call(gate.wait, 0.01)
    with pytest.raises(TimeoutError):
        thread.call(lambda: 7, WAIT_TIMEOUT)
    assert thread.is_busy
    gate.set()
    until(lambda: returns(thread, 7), "the end of the first call")


def returns(thread, value):
    try:
        return thread.call(lambda: value, WAIT_TIMEOUT) == value
    except TimeoutError:
        return False


def test_a_late_reply_can_be_taken(thread):
    gate = threading.Event()
    thread.begin(gate.wait)
    with pytest.raises(TimeoutError):
        thread.reply(0.01)
    gate.set()
    assert thread.reply(WAIT_TIMEOUT) is True
    assert not thread.is_busy


def test_only_one_call_can_be_under_way(thread):
    thread.begin(lambda: 7)
    with pytest.raises(RuntimeError):
        thread.begin(lambda: 8)
    assert thread.reply(WAIT_TIMEOUT) == 7


@pytest.fixture
def wakeup():
    with closing(Wakeup()) as wakeup:
        yield wakeup


def test_a_wait_without_a_notification_times_out(wakeup):
    assert wakeup.wait(0.01) is False


def test_a_notification_before_the_wait_ends_it_once(wakeup):
    wakeup.notify()
    wakeup.notify()
    assert wakeup.wait(WAIT_TIMEOUT) is True
    assert wakeup.wait(0.0) is False


def test_another_thread_ends_a_wait(wakeup):
    threading.Timer(0.01, wakeup.notify).start()
    assert wakeup.wait(WAIT_TIMEOUT) is True


def test_a_signal_handler_ends_a_wait(wakeup):
    before = signal.signal(signal.SIGALRM, lambda *_: wakeup.notify())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert wakeup.wait(WAIT_TIMEOUT) is True
    finally:
        signal.signal(signal.SIGALRM, before)


def test_more_notifications_than_fit_do_not_block(wakeup):
    for _ in range(1_000_000 // 64):
        wakeup.notify()
    assert wakeup.wait(WAIT_TIMEOUT) is True
    assert wakeup.wait(0.0) is False


def test_a_selector_sees_a_notification(wakeup):
    with selectors.DefaultSelector() as selector:
        selector.register(wakeup, selectors.EVENT_READ)
        assert not selector.select(0)
        wakeup.notify()
        assert selector.select(WAIT_TIMEOUT)
        wakeup.clear()
        assert not selector.select(0)


def test_a_notification_after_close_is_ignored():
    wakeup = Wakeup()
    wakeup.close()
    wakeup.notify()
