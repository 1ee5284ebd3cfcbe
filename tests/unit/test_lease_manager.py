"""When a worker renews its lease, and what follows from each reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, MovedError, ReadOnlyError, ResponseError

from celeriac.backend.claims.claim import DeclaredDead, Renewed
from celeriac.config.lease import LEASE_DURATION, RENEWAL_INTERVAL
from celeriac.worker.lease_manager import CLAIM_VALIDITY, SharedLease
from celeriac.worker.lease_state_machine import (
    MAX_REPLY_AGE,
    RENEWAL_TIMEOUT,
    DropConnections,
    Heartbeat,
    LeaseRenewed,
    LeaseStateMachine,
    ProbeServer,
    Renew,
    StopAll,
    StopTasks,
    Warn,
)
from celeriac.worker.probe import PROBE_TIMEOUT, Reach
from celeriac.worker.supervisor.lease_policy import SILENCE_GRACE, SILENCE_LIMIT

ERROR = ConnectionError("reset by peer")
READ_ONLY = ReadOnlyError("You can't write against a read only replica.")
NO_PASSWORD = AuthenticationError("Authentication required.")
FULL = ResponseError("max number of clients reached")
BUG = ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")


class Driver:
    """Feeds a state machine with events, and keeps the number of the last renewal."""

    def __init__(self, **options: Any) -> None:
        self.machine = LeaseStateMachine(new_holder=lambda: "second", **options)
        self.number = 0

    def tick(self, now: float) -> Sequence[Any]:
        return self.noted(self.machine.on_tick(now))

    def reply(
        self, reply: Renewed | DeclaredDead, sent_at: float, now: float, number: int | None = None
    ) -> Sequence[Any]:
        return self.noted(self.machine.on_reply(number or self.number, reply, "first", sent_at, now))

    def error(self, error: Exception, now: float, number: int | None = None) -> Sequence[Any]:
        return self.noted(self.machine.on_error(number or self.number, error, now))

    def probe(self, reach: Reach) -> Sequence[Any]:
        return self.machine.on_probe(self.number, reach)

    def noted(self, decisions: Sequence[Any]) -> Sequence[Any]:
        for decision in decisions:
            if isinstance(decision, Renew):
                self.number = decision.number
        return decisions

    def fail(self, now: float = 100.0, error: Exception = ERROR) -> Sequence[Any]:
        """Begin a renewal, and let it fail over the old connection."""
        self.tick(now)
        return self.error(error, now)

    def verdict(self, error: Exception, reach: Reach) -> Sequence[Any]:
        """Return what follows if the renewal over a new connection fails."""
        self.fail()
        return [*self.probe(reach), *self.error(error, 100.1)]


@pytest.fixture
def lease() -> Driver:
    return Driver()


def warned(decisions: Sequence[Any]) -> list[str]:
    return [decision.message for decision in decisions if isinstance(decision, Warn)]


def test_the_first_tick_renews_at_once(lease):
    assert lease.machine.seconds_to_wait(100.0) == 0.0
    assert lease.tick(100.0) == (Renew(1),)


def test_ticks_follow_one_another_at_the_renewal_interval(lease):
    lease.tick(100.0)
    lease.reply(Renewed(), 100.0, 100.1)
    assert lease.machine.seconds_to_wait(100.5) == RENEWAL_INTERVAL - 0.5
    assert lease.machine.seconds_to_wait(100.0 + 2 * RENEWAL_INTERVAL) == 0.0
    assert lease.tick(100.5) == ()


def test_a_renewed_lease_lets_commands_go_on(lease):
    lease.tick(100.0)
    assert lease.reply(Renewed(), 100.1, 100.2) == [LeaseRenewed("first", 100.1), Heartbeat()]


def test_a_late_reply_counts_from_the_time_of_its_renewal_and_is_no_heartbeat(lease):
    lease.tick(100.0)
    assert lease.reply(Renewed(), 100.0, 100.0 + MAX_REPLY_AGE) == [LeaseRenewed("first", 100.0)]


def test_a_reply_counts_also_after_its_renewal_was_given_up(lease):
    lease.tick(100.0)
    lease.tick(100.0 + RENEWAL_TIMEOUT)
    decisions = lease.reply(Renewed(), 100.0, 100.0 + RENEWAL_TIMEOUT + 0.1, number=1)
    assert decisions == [LeaseRenewed("first", 100.0), Heartbeat()]


def test_a_reply_that_a_later_one_overtook_does_not_shorten_the_lease(lease):
    lease.tick(100.0)
    lease.tick(100.0 + RENEWAL_TIMEOUT)
    lease.reply(Renewed(), 101.5, 101.6)
    assert LeaseRenewed("first", 100.0) not in lease.reply(Renewed(), 100.0, 101.7, number=1)


def test_cancelled_and_fenced_tasks_are_stopped(lease):
    lease.tick(100.0)
    reply = Renewed(cancelled=frozenset({"a"}), fenced=frozenset({"b"}))
    assert StopTasks(frozenset({"a"}), frozenset({"b"})) in lease.reply(reply, 100.0, 100.1)


def test_a_worker_that_was_declared_dead_stops_all_and_renews_at_once_as_another_holder(lease):
    lease.tick(100.0)
    assert lease.reply(DeclaredDead(), 100.0, 100.1) == (StopAll("second"),)
    assert lease.machine.seconds_to_wait(100.1) == 0.0
    assert lease.tick(100.1) == (Renew(2),)


def test_a_renewal_on_request_does_not_wait_for_the_interval(lease):
    lease.tick(100.0)
    lease.reply(Renewed(), 100.0, 100.1)
    lease.machine.renew_now()
    assert lease.tick(100.2) == (Renew(2),)


@pytest.mark.parametrize("error", [ERROR, NO_PASSWORD, BUG], ids=repr)
def test_a_renewal_that_fails_is_tried_at_once_over_a_new_connection(lease, error):
    assert lease.fail(error=error) == (Renew(2, over_new_connection=True), ProbeServer(2))


def test_a_renewal_without_a_reply_is_tried_over_a_new_connection(lease):
    lease.tick(100.0)
    assert lease.machine.seconds_to_wait(100.0) == RENEWAL_TIMEOUT
    assert lease.tick(100.0 + RENEWAL_TIMEOUT) == (Renew(2, over_new_connection=True), ProbeServer(2))


def test_a_dead_connection_is_replaced_when_the_new_one_renews(lease):
    lease.fail()
    assert lease.reply(Renewed(), 100.1, 100.2) == [LeaseRenewed("first", 100.1), Heartbeat(), DropConnections()]
    assert lease.error(ERROR, 101.0, number=1) == ()
    assert lease.tick(102.0) == (Renew(3),)


def test_a_refusal_for_now_is_the_same_for_everyone_and_needs_no_probe(lease):
    heartbeat = lease.fail(error=READ_ONLY)
    assert Heartbeat() in heartbeat
    (warning,) = warned(heartbeat)
    assert warning.startswith("the lease cannot be renewed, running tasks go on: ReadOnlyError: You can't write")
    assert warning.endswith("; connect to the primary server, or make this one writable")
    assert lease.tick(102.0) == (Renew(2, over_new_connection=True), ProbeServer(2))
    assert lease.error(READ_ONLY, 102.1) == [Heartbeat()]


@pytest.mark.parametrize("reach", Reach)
def test_a_redis_cluster_refuses_every_client(lease, reach):
    assert Heartbeat() in lease.verdict(MovedError("3999 127.0.0.1:1"), reach)


@pytest.mark.parametrize("reach", [Reach.NO_SERVER, Reach.UNKNOWN])
def test_commands_go_on_while_the_server_is_down(lease, reach):
    assert Heartbeat() in lease.verdict(ERROR, reach)


@pytest.mark.parametrize("reach", [Reach.NO_CONNECTION, Reach.REPLY])
def test_a_worker_that_is_cut_off_sends_no_heartbeat(lease, reach):
    decisions = lease.verdict(ERROR, reach)
    assert warned(decisions) == [
        "the lease cannot be renewed, running tasks are ended, to run elsewhere: ConnectionError: reset by peer"
    ]
    assert Heartbeat() not in decisions


def test_a_server_that_shakes_hands_and_renews_nothing_is_unavailable_for_everyone(lease):
    lease.fail()
    assert lease.probe(Reach.REPLY) == ()
    assert Heartbeat() in lease.tick(100.0 + RENEWAL_TIMEOUT)


@pytest.mark.parametrize("error", [NO_PASSWORD, FULL, BUG], ids=repr)
@pytest.mark.parametrize("reach", Reach)
def test_others_may_be_served_when_only_this_renewal_is_refused(lease, error, reach):
    assert Heartbeat() not in lease.verdict(error, reach)


def test_after_a_change_of_the_password_the_old_connection_is_tried_first(lease):
    lease.verdict(NO_PASSWORD, Reach.REPLY)
    assert lease.tick(102.0) == (Renew(3),)


def test_a_probe_without_a_result_in_time_counts_as_no_connection(lease):
    lease.fail()
    assert lease.error(ERROR, 100.1) == ()
    assert Heartbeat() not in lease.tick(100.0 + RENEWAL_TIMEOUT)


def test_each_outage_has_one_warning_until_it_ends(lease):
    assert len(warned(lease.verdict(ERROR, Reach.NO_SERVER))) == 1
    lease.tick(102.0)
    assert warned([*lease.probe(Reach.NO_SERVER), *lease.error(ERROR, 102.1)]) == []
    lease.tick(104.0)
    assert warned(lease.reply(Renewed(), 104.0, 104.1)) == ["the lease is renewed again"]


def test_a_strict_worker_goes_on_only_if_its_lease_is_renewed():
    lease = Driver(is_strict=True)
    assert lease.fail() == (Renew(2, over_new_connection=True),)
    assert Heartbeat() not in lease.error(ERROR, 100.1)
    lease = Driver(is_strict=True)
    assert Heartbeat() not in lease.fail(error=READ_ONLY)


def test_after_the_end_of_the_lease_an_unavailable_store_is_no_news(lease):
    lease.tick(100.0)
    lease.machine.end()
    assert lease.error(ERROR, 100.1) == ()


def test_a_decision_comes_before_the_supervisors_end_commands():
    between_heartbeats = RENEWAL_INTERVAL + 2 * RENEWAL_TIMEOUT
    assert between_heartbeats < SILENCE_LIMIT
    assert PROBE_TIMEOUT < RENEWAL_TIMEOUT
    assert MAX_REPLY_AGE + SILENCE_LIMIT + SILENCE_GRACE < LEASE_DURATION


def test_a_claim_is_valid_for_less_time_than_the_lease_lasts():
    assert CLAIM_VALIDITY < SILENCE_LIMIT < LEASE_DURATION


def test_the_shared_lease_gives_the_holder_and_the_end_of_its_validity():
    lease = SharedLease()
    lease.write("h" * 32, 100.0)
    assert lease.read() == ("h" * 32, 100.0 + CLAIM_VALIDITY)
