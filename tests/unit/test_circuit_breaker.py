"""The circuit breaker: one line when a peer becomes unavailable, one when it is back, growing delays between."""

from __future__ import annotations

import logging
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from celeriac.executor.circuit_breaker import CircuitBreaker, level_of

FIRST, LONGEST = 0.5, 8.0  # seconds


@pytest.fixture
def breaker() -> CircuitBreaker:
    return CircuitBreaker("the broker", first_delay=FIRST, max_delay=LONGEST, random=Random(1), effect="tasks wait")


def test_a_new_breaker_allows_calls(breaker):
    assert breaker.allows(0.0)
    assert not breaker.is_open
    assert breaker.record_success(1.0) is None


def test_the_first_failure_is_logged_with_its_effect(breaker):
    assert breaker.record_failure(10.0, "refused") == "the broker is unavailable, tasks wait: refused"
    assert breaker.is_open
    assert not breaker.allows(10.0)


def test_an_outage_is_logged_once_it_is_longer_than_the_patience_of_its_caller(breaker):
    assert breaker.record_failure(10.0, "locked", patience=5.0) is None
    assert breaker.record_success(11.0) is None
    assert breaker.record_failure(20.0, "locked", patience=5.0) is None
    assert breaker.record_failure(25.0, "locked", patience=5.0) == "the broker is unavailable, tasks wait: locked"
    assert breaker.record_failure(35.0, "locked", patience=5.0) is None
    assert breaker.record_success(50.0) == "the broker is available again after 30.0 s"


def test_a_line_without_effect_has_no_gap():
    breaker = CircuitBreaker("the ledger", first_delay=1, max_delay=1, random=Random(1))
    assert breaker.record_failure(0.0, "locked") == "the ledger is unavailable: locked"


def test_a_refusal_is_logged_with_its_remedy(breaker):
    line = breaker.record_failure(10.0, full())
    assert line is not None
    start, remedy = line.split("; ")
    assert start == "the broker refuses requests, tasks wait: ResponseError: OOM command not allowed"
    assert remedy == "raise maxmemory, or remove data"


def test_a_refusal_during_an_outage_is_logged_once_if_only_a_person_can_end_it(breaker):
    breaker.record_failure(10.0, OSError("reset"))
    assert breaker.record_failure(breaker.retry_at, full()) is None
    line = breaker.record_failure(breaker.retry_at, ResponseError("NOPERM no right"))
    assert line is not None
    assert line.startswith("the broker refuses requests, tasks wait: ResponseError: NOPERM no right; ")
    assert breaker.record_failure(breaker.retry_at, ResponseError("NOPERM no right")) is None


def test_a_refusal_is_logged_once_in_an_outage_and_then_without_patience(breaker):
    refusal = ResponseError("NOPERM no right")
    breaker.record_failure(10.0, OSError("reset"))
    assert breaker.record_failure(breaker.retry_at, refusal, patience=1_000.0) is not None
    assert breaker.record_failure(breaker.retry_at, OSError("reset")) is None
    assert breaker.record_failure(breaker.retry_at, refusal) is None


def test_a_line_that_others_log_too_is_a_warning_if_only_a_person_can_end_the_outage():
    assert level_of("locked") == level_of(OSError("reset")) == level_of(full()) == logging.DEBUG
    assert level_of(ResponseError("NOPERM no right")) == logging.WARNING


def full() -> ResponseError:
    return ResponseError("OOM command not allowed.")


def test_a_later_failure_is_counted_and_not_logged(breaker):
    breaker.record_failure(10.0, "refused")
    assert breaker.record_failure(breaker.retry_at, "refused") is None
    assert breaker.failures == 2


def test_a_failure_before_retry_at_belongs_to_an_earlier_call(breaker):
    breaker.record_failure(10.0, "refused")
    retry_at = breaker.retry_at
    assert breaker.record_failure(10.0, "refused") is None
    assert (breaker.failures, breaker.retry_at) == (1, retry_at)


def test_a_success_is_logged_once_with_the_length_of_the_outage(breaker):
    breaker.record_failure(10.0, "refused")
    assert breaker.record_success(12.5) == "the broker is available again after 2.5 s"
    assert breaker.record_success(12.6) is None
    assert breaker.allows(12.5)


def test_a_second_outage_is_logged_again(breaker):
    breaker.record_failure(10.0, "refused")
    breaker.record_success(11.0)
    assert breaker.record_failure(11.0, "reset") == "the broker is unavailable, tasks wait: reset"


@given(st.integers(0, 2**32), st.integers(1, 100))
def test_delays_grow_and_stay_within_bounds(seed, failures):
    breaker = CircuitBreaker("it", first_delay=FIRST, max_delay=LONGEST, random=Random(seed))
    now = 0.0
    for number in range(failures):
        breaker.record_failure(now, "refused")
        delay = breaker.retry_at - now
        expected = min(LONGEST, FIRST * 2.0**number)
        assert 0.5 * expected - 1e-6 <= delay <= 1.5 * expected + 1e-6
        now = breaker.retry_at
