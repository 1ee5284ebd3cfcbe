"""Tests of the loop that survives exceptions."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac.broker.deadline_thread import DeadlineThread
from celeriac.executor.stats import format_thread
from celeriac.shortages import NO_THREAD
from celeriac.surviving_loop import SurvivingLoop, Survivor, thread_health
from celeriac.worker.log import JsonLines, TextLines
from tests.support.cli_runner import WAIT_TIMEOUT


def run_loop(run_round, **options):
    loop = SurvivingLoop("test-loop", run_round, wait=lambda _: None, **options)
    loop.start()
    loop.join(WAIT_TIMEOUT)
    assert not loop.is_alive
    return loop


def test_rounds_follow_each_other_until_one_returns_false():
    rounds = iter([True, True, False, True])
    run_loop(lambda: next(rounds))
    assert list(rounds) == [True]


def test_a_round_that_raises_is_followed_by_another_one():
    divisors = iter([1, 0, 0, -1])
    loop = run_loop(lambda: 1 // next(divisors) > 0)
    assert loop.survivor.count == 2
    assert loop.health().last_error == "ZeroDivisionError: integer division or modulo by zero"


def test_the_delay_grows_with_each_exception_in_a_row_up_to_a_limit():
    delays: list[float] = []
    rounds = iter([True, True, True, True, True, False, True, None])

    def run_round():
        raises = next(rounds)
        if raises:
            raise ValueError("bad")
        return raises is not None

    loop = SurvivingLoop("test-loop", run_round, wait=delays.append, max_delay=0.4)
    loop.start()
    loop.join(WAIT_TIMEOUT)
    assert len(delays) == 6
    assert 0.05 <= delays[0] <= 0.15
    assert all(0.2 <= delay <= 0.6 for delay in delays[2:5])
    assert 0.05 <= delays[5] <= 0.15, "a good round restarts the delay"


def test_each_kind_of_exception_is_logged_once_with_its_traceback(caplog):
    rounds: Iterator[Any] = iter([{}, {}, [], [], None])

    def run_round():
        found = next(rounds)
        if found is None:
            return False
        return bool(found[0])

    run_loop(run_round)
    assert [record.exc_info[0] for record in caplog.records] == [KeyError, IndexError]
    assert "test-loop" in caplog.text
    assert "in run_round" in caplog.text


def test_a_lack_of_descriptors_is_logged_once_without_a_traceback(caplog):
    survivor = Survivor("test")
    for _ in range(2):
        with survivor.guard():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    [record] = caplog.records
    assert record.getMessage() == "thread test cannot work for now: too many open files; it tries again"
    assert (record.levelname, record.exc_info, survivor.count) == ("WARNING", None, 2)


def test_the_same_class_raised_at_another_line_is_another_kind(caplog):
    survivor = Survivor("test")
    with survivor.guard():
        raise ValueError("one")
    with survivor.guard():
        raise ValueError("two")
    assert len(caplog.records) == 2
    assert survivor.count == 2


def test_expected_exceptions_pass_a_guard():
    survivor = Survivor("test")
    with pytest.raises(ConnectionResetError), survivor.guard(lambda error: isinstance(error, OSError)):
        raise ConnectionResetError
    assert survivor.count == 0


def test_a_running_loop_is_reported_until_its_last_round():
    gate = threading.Event()
    loop = SurvivingLoop("test-reported", lambda: not gate.wait(WAIT_TIMEOUT))
    loop.start()
    (health,) = (health for health in thread_health() if health.name == "test-reported")
    assert health.is_alive
    assert format_thread(health).startswith("thread test-reported: round of ")
    gate.set()
    loop.join(WAIT_TIMEOUT)
    assert "test-reported" not in {health.name for health in thread_health()}


def test_a_thread_that_cannot_start_is_not_reported_and_can_be_joined(monkeypatch):
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError(NO_THREAD)

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    loop, calls = SurvivingLoop("test-loop", lambda: False), DeadlineThread[None]("test-calls")
    with pytest.raises(RuntimeError, match=NO_THREAD):
        loop.start()
    with pytest.raises(RuntimeError, match=NO_THREAD):
        calls.begin(lambda: None)
    loop.join()
    calls.close()
    assert not {"test-loop", "test-calls"} & {health.name for health in thread_health()}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_otherwise_is_reported_as_not_running():
    def run_round():
        raise SystemExit

    loop = SurvivingLoop("test-ended", run_round)
    loop.start()
    loop.join(WAIT_TIMEOUT)
    (health,) = (health for health in thread_health() if health.name == "test-ended")
    assert format_thread(health) == "thread test-ended: not running"


def test_the_log_of_a_worker_shows_the_traceback_of_a_bug(caplog):
    survivor = Survivor("test")
    with survivor.guard():
        raise ValueError("broken")
    (record,) = caplog.records
    assert "Traceback" in TextLines().format(record)
    assert "Traceback" in json.loads(JsonLines().format(record))["traceback"]


def test_the_log_of_a_worker_hides_other_tracebacks(caplog):
    try:
        raise ValueError("secret")
    except ValueError:
        logging.getLogger("celery").exception("Task failed")
    (record,) = caplog.records
    assert "secret" not in TextLines().format(record)
    assert "secret" not in JsonLines().format(record)
