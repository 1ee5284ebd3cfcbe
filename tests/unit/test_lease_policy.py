"""When the commands of a silent worker are ended."""

from __future__ import annotations

import math

import pytest

from celeriac.airflow import task_reaper
from celeriac.config.lease import LEASE_DURATION
from celeriac.worker.supervisor import loop
from celeriac.worker.supervisor.lease_policy import SILENCE_GRACE, SILENCE_LIMIT, LeasePolicy

OVERSLEEP_LIMIT = 1.0  # seconds


@pytest.fixture
def policy() -> LeasePolicy:
    policy = LeasePolicy(oversleep_limit=OVERSLEEP_LIMIT)
    policy.record_heartbeat(100.0, 100.0)
    return policy


def test_without_a_heartbeat_there_is_no_silence():
    policy = LeasePolicy(oversleep_limit=OVERSLEEP_LIMIT)
    assert policy.silent_at == math.inf
    assert policy.grace(1e9) is None


def test_silence_begins_after_the_limit(policy):
    assert policy.silent_at == 100.0 + SILENCE_LIMIT
    assert policy.grace(policy.silent_at - 0.01) is None
    assert policy.grace(policy.silent_at) == SILENCE_GRACE


def test_each_heartbeat_moves_the_limit(policy):
    policy.record_heartbeat(104.0, 104.0)
    assert policy.grace(100.0 + SILENCE_LIMIT) is None
    assert policy.grace(104.0 + SILENCE_LIMIT) == SILENCE_GRACE


def test_a_silence_that_is_noticed_too_late_leaves_no_grace(policy):
    assert policy.grace(policy.silent_at + OVERSLEEP_LIMIT) == 0.0


def test_the_grace_stays_the_same_throughout_one_silence(policy):
    assert policy.grace(policy.silent_at) == SILENCE_GRACE
    assert policy.grace(policy.silent_at + 60.0) == SILENCE_GRACE


def test_a_fresh_heartbeat_ends_the_silence(policy):
    assert policy.grace(policy.silent_at + 60.0) == 0.0
    policy.record_heartbeat(200.0, 200.0)
    assert policy.grace(200.0) is None
    assert policy.grace(200.0 + SILENCE_LIMIT) == SILENCE_GRACE


def test_an_old_heartbeat_does_not_end_the_silence(policy):
    now = policy.silent_at + 60.0
    assert policy.grace(now) == 0.0
    policy.record_heartbeat(now - SILENCE_LIMIT, now)
    assert policy.grace(now) == 0.0


def test_commands_are_dead_before_the_lease_expires():
    assert SILENCE_LIMIT + SILENCE_GRACE < LEASE_DURATION


def test_a_process_that_stopped_for_long_kills_before_the_lease_expires():
    for limit in (loop.OVERSLEEP_LIMIT, task_reaper.OVERSLEEP_LIMIT):
        assert SILENCE_LIMIT + limit + SILENCE_GRACE < LEASE_DURATION
