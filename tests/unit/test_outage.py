"""The log lines about a server that is unavailable or refuses, and the slots that no exception keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError as Unreachable
from redis.exceptions import OutOfMemoryError, ReadOnlyError

from celeriac.worker.outage import MIN_LINE_INTERVAL, OutageLog, ServerRetry
from celeriac.worker.pool import CommandPool
from tests.support.cli_runner import until

FULL = OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
READ_ONLY = ReadOnlyError("You can't write against a read only replica.")


@pytest.fixture
def log() -> OutageLog:
    return OutageLog("the broker", "commands go on")


def test_the_first_failure_says_what_refuses_why_and_when_the_next_attempt_is(log):
    assert log.failure(FULL, 100.0, 0.2) == (
        "the broker refuses requests, commands go on: OutOfMemoryError: command not allowed when used memory > "
        "'maxmemory'; raise maxmemory, or remove data; next attempt in 0.2 s"
    )


def test_a_server_that_is_not_there_is_unavailable(log):
    line = log.failure(Unreachable("Connection refused"), 100.0, 0.2)
    assert line.startswith("the broker is unavailable, commands go on: ConnectionError: Connection refused")


def test_the_same_reason_is_logged_once_however_long_it_lasts(log):
    log.failure(FULL, 100.0, 0.2)
    assert log.failure(FULL, 100.0 + 10 * MIN_LINE_INTERVAL, 0.2) is None


def test_another_reason_is_logged_but_not_soon_after_the_last_line(log):
    log.failure(FULL, 100.0, 0.2)
    assert log.failure(READ_ONLY, 101.0, 0.2) is None
    assert "read only" in log.failure(READ_ONLY, 100.0 + MIN_LINE_INTERVAL, 0.2)


def test_the_end_of_an_outage_is_logged_once(log):
    assert log.success(99.0) is None
    log.failure(FULL, 100.0, 0.2)
    assert log.success(103.0) == "the broker is available again after 3.0 s"
    assert log.success(104.0) is None
    assert log.failure(FULL, 105.0, 0.2) is not None


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


def test_a_call_is_repeated_until_the_server_serves_it(caplog):
    seen: list[Exception] = []
    outage = ServerRetry("the server", "calls wait")
    assert outage.call(failing(FULL, READ_ONLY), seen.append) == "done"
    assert seen == [FULL, READ_ONLY]
    first, last = caplog.messages
    assert "the server refuses requests" in first
    assert "the server is available again" in last


def test_an_error_that_is_not_the_servers_is_raised():
    with pytest.raises(ValueError, match="a bug"):
        ServerRetry("the server", "calls wait").call(failing(FULL, ValueError("a bug")))


@pytest.mark.celery
@pytest.mark.parametrize("broken", ["target", "callback", "accept_callback", "error_callback"])
def test_an_exception_anywhere_in_a_task_frees_its_slot(broken):
    pool, failures = CommandPool(1), []

    def part(name: str) -> Callable[..., Any]:
        def call(*_: Any) -> None:
            if name == broken or (broken == "error_callback" and name == "target"):
                raise ValueError(name)
            if name == "error_callback":
                failures.append(name)

        return call

    names = ("callback", "accept_callback", "error_callback")
    for _ in range(2):  # the only thread must be free for the second one
        ended = threading.Event()
        pool.on_task_end = ended.set
        pool.apply_async(part("target"), (), **{name: part(name) for name in names})
        assert ended.wait(30)
    until(lambda: not pool.is_busy, "a free slot")
    assert failures == ([] if broken == "error_callback" else ["error_callback"] * 2)
    pool.stop()
