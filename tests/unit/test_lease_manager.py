"""When a worker renews its lease, and what follows from each reply."""

from __future__ import annotations

import pytest

from celeriac.backend.claims.claim import DeclaredDead, Renewed
from celeriac.config.lease import LEASE_DURATION, RENEWAL_INTERVAL
from celeriac.worker.lease_manager import CLAIM_VALIDITY, SharedLease
from celeriac.worker.lease_state_machine import (
    RENEWAL_TIMEOUT,
    Heartbeat,
    LeaseRenewed,
    LeaseStateMachine,
    ProbeStore,
    Renew,
    StopAll,
    StopTasks,
    Warn,
)
from celeriac.worker.supervisor.lease_policy import SILENCE_LIMIT

ERROR = ConnectionError("reset by peer")


@pytest.fixture
def machine() -> LeaseStateMachine:
    return LeaseStateMachine(new_holder=lambda: "second")


def test_the_first_tick_renews_at_once(machine):
    assert machine.seconds_to_wait(100.0) == 0.0
    assert machine.on_tick(100.0) == (Renew(),)


def test_ticks_follow_one_another_at_the_renewal_interval(machine):
    machine.on_tick(100.0)
    assert machine.seconds_to_wait(100.5) == RENEWAL_INTERVAL - 0.5
    assert machine.seconds_to_wait(100.0 + 2 * RENEWAL_INTERVAL) == 0.0


def test_only_one_renewal_is_under_way(machine):
    machine.on_tick(100.0)
    assert machine.on_tick(102.0) == ()
    machine.on_reply(Renewed(), "first", 100.0, 103.0)
    assert machine.on_tick(104.0) == (Renew(),)


def test_a_renewed_lease_lets_commands_go_on(machine):
    machine.on_tick(100.0)
    assert machine.on_reply(Renewed(), "first", 100.1, 100.2) == [LeaseRenewed("first", 100.1), Heartbeat()]


def test_a_late_reply_counts_from_the_time_of_its_renewal_and_is_no_heartbeat(machine):
    machine.on_tick(100.0)
    assert machine.on_reply(Renewed(), "first", 100.0, 100.0 + RENEWAL_TIMEOUT) == [LeaseRenewed("first", 100.0)]


def test_cancelled_and_fenced_tasks_are_stopped(machine):
    machine.on_tick(100.0)
    reply = Renewed(cancelled=frozenset({"a"}), fenced=frozenset({"b"}))
    assert StopTasks(frozenset({"a"}), frozenset({"b"})) in machine.on_reply(reply, "first", 100.0, 100.1)


def test_a_worker_that_was_declared_dead_stops_all_and_renews_at_once_as_another_holder(machine):
    machine.on_tick(100.0)
    assert machine.on_reply(DeclaredDead(), "first", 100.0, 100.1) == (StopAll("second"),)
    assert machine.seconds_to_wait(100.1) == 0.0
    assert machine.on_tick(100.1) == (Renew(),)


def test_an_error_asks_for_a_probe_and_the_next_tick_renews_again(machine):
    machine.on_tick(100.0)
    assert machine.on_error(ERROR) == (ProbeStore(ERROR),)
    assert machine.on_tick(102.0) == (Renew(),)


def test_a_renewal_without_a_reply_stays_under_way(machine):
    machine.on_tick(100.0)
    (probe,) = machine.on_timeout()
    assert isinstance(probe, ProbeStore)
    assert str(probe.error) == "no reply within 2 s"
    assert machine.on_tick(102.0) == ()


def test_commands_go_on_while_the_store_is_unavailable_for_everyone(machine):
    warning = Warn("the lease cannot be renewed, running tasks go on: reset by peer")
    assert machine.on_probe(ERROR, is_unavailable_for_everyone=True) == [warning, Heartbeat()]
    assert machine.on_probe(ERROR, is_unavailable_for_everyone=True) == [Heartbeat()]


def test_a_worker_that_is_cut_off_sends_no_heartbeat(machine):
    warning = Warn("the lease cannot be renewed, running tasks are ended, to run elsewhere: reset by peer")
    assert machine.on_probe(ERROR, is_unavailable_for_everyone=False) == [warning]
    assert machine.on_probe(ERROR, is_unavailable_for_everyone=False) == []


def test_each_outage_has_one_warning(machine):
    machine.on_tick(100.0)
    assert len(machine.on_probe(ERROR, is_unavailable_for_everyone=False)) == 1
    machine.on_reply(Renewed(), "first", 100.0, 100.1)
    assert len(machine.on_probe(ERROR, is_unavailable_for_everyone=False)) == 1


def test_a_strict_worker_does_not_probe():
    machine = LeaseStateMachine(is_strict=True)
    machine.on_tick(100.0)
    (warning,) = machine.on_error(ERROR)
    assert isinstance(warning, Warn)
    assert list(machine.on_error(ERROR)) == []


def test_after_the_end_of_the_lease_an_unavailable_store_is_no_news(machine):
    machine.on_tick(100.0)
    machine.end()
    assert machine.on_error(ERROR) == ()
    assert machine.on_timeout() == ()


def test_a_claim_is_valid_for_less_time_than_the_lease_lasts():
    assert CLAIM_VALIDITY < SILENCE_LIMIT < LEASE_DURATION


def test_the_shared_lease_gives_the_holder_and_the_end_of_its_validity():
    lease = SharedLease()
    lease.write("h" * 32, 100.0)
    assert lease.read() == ("h" * 32, 100.0 + CLAIM_VALIDITY)
