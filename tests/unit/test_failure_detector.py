"""The failure detector: lease records and the time in, suspected and expired workers out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.backend.claims.claim import Lease, LeaseRecord, LeaseState
from celeriac.backend.claims.failure_detector import (
    CHECK_WRITES_AFTER,
    MAX_POLL_GAP,
    RECENT,
    SUSPECT_AFTER,
    Expired,
    FailureDetector,
)
from celeriac.config.lease import LEASE_DURATION

POLL = 1.0  # seconds between two polls
LONG = 1_000.0  # seconds


def lease(holder: str, **fields: Any) -> Lease:
    return Lease(holder=holder, name=f"{holder}@h", host="h", pid=1, boot_id="", queues=("default",), slots=1, **fields)


def record(count: int, state: LeaseState = LeaseState.LIVE, holder: str = "w", **fields: Any) -> LeaseRecord:
    return LeaseRecord(lease(holder, **fields), count, state)


class Watch:
    """A detector that is polled at a steady interval, on a clock that starts at 100."""

    def __init__(self) -> None:
        self.detector = FailureDetector()
        self.now = 100.0

    def poll(self, leases: Mapping[str, LeaseRecord], after: float = POLL) -> bool:
        self.now += after
        return self.detector.update(leases, self.now)

    def poll_for(self, seconds: float, leases: Mapping[str, LeaseRecord]) -> list[bool]:
        return [self.poll(leases) for _ in range(round(seconds / POLL))]

    @property
    def suspected(self) -> list[str]:
        return [lease.holder for lease in self.detector.suspected(self.now)]

    @property
    def expired(self) -> list[str]:
        return [each.holder for each in self.detector.expired(self.now)]


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_a_worker_that_renews_is_neither_suspected_nor_expired(watch):
    for count in range(1, 60):
        assert not watch.poll({"w": record(count)})
        assert (watch.suspected, watch.expired) == ([], [])
    assert [lease.holder for lease in watch.detector.live()] == ["w"]


def test_a_silent_worker_is_suspected_and_then_expires(watch):
    watch.poll({"w": record(7)})
    news = watch.poll_for(SUSPECT_AFTER - 0.5, {"w": record(7)})
    assert (any(news), watch.suspected) == (False, [])
    assert watch.poll({"w": record(7)})
    assert (watch.suspected, watch.expired) == (["w"], [])
    watch.poll_for(LEASE_DURATION - 5, {"w": record(7)})
    assert watch.detector.expired(watch.now) == [Expired("w", 7, "w@h", LEASE_DURATION)]


def test_a_suspected_worker_is_news_once(watch):
    assert watch.poll_for(9, {"w": record(7)}) == [False] * 5 + [True] + [False] * 3


def test_a_worker_is_suspected_and_not_active_from_the_time_on_at_which_that_is_news(watch):
    watch.poll({"w": record(7)})
    assert watch.poll({"w": record(7)}, after=SUSPECT_AFTER)
    assert (watch.suspected, watch.detector.active) == (["w"], [])


def test_a_heartbeat_ends_the_suspicion(watch):
    watch.poll_for(6, {"w": record(7)})
    assert watch.suspected == ["w"]
    assert not watch.poll({"w": record(8)})
    assert watch.suspected == []


def test_what_a_worker_reports_is_no_heartbeat(watch):
    watch.poll({"w": record(7, number=1)})
    for number in range(12):
        watch.poll({"w": record(7, number=1, running=(f"task-{number}",))})
    assert watch.expired == ["w"]


def test_a_renewal_counts_that_a_failover_gave_the_count_of_a_lost_one(watch):
    watch.poll({"w": record(7, number=3)})  # lost in the failover
    watch.poll({"w": record(7, number=4)}, after=MAX_POLL_GAP - POLL)
    watch.poll_for(LEASE_DURATION - POLL, {"w": record(7, number=4)})
    assert watch.expired == []
    watch.poll({"w": record(7, number=4)})
    assert watch.expired == ["w"]


def test_a_worker_with_a_malformed_report_renews_by_its_count(watch):
    for count in range(1, 15):
        watch.poll({"w": LeaseRecord(None, count, LeaseState.LIVE)})
    assert watch.expired == []
    watch.poll_for(LEASE_DURATION, {"w": LeaseRecord(None, count, LeaseState.LIVE)})
    assert watch.expired == ["w"]


def test_a_long_gap_between_polls_restarts_every_silence_timer(watch):
    watch.poll_for(8, {"w": record(7)})
    assert not watch.poll({"w": record(7)}, after=MAX_POLL_GAP + 0.1)
    assert (watch.suspected, watch.expired) == ([], [])
    watch.poll_for(LEASE_DURATION, {"w": record(7)})
    assert watch.expired == ["w"]


def test_an_unavailable_store_gives_every_worker_a_full_lease_again(watch):
    watch.poll_for(8, {"w": record(7)})
    watch.detector.poll_failed()
    assert not watch.detector.has_polled
    watch.poll({"w": record(7)})
    assert watch.detector.has_polled
    watch.poll_for(LEASE_DURATION - 1, {"w": record(7)})
    assert watch.expired == []
    watch.poll({"w": record(7)})
    assert watch.expired == ["w"]


def test_a_worker_that_leaves_is_news_once(watch):
    watch.poll({"w": record(7)})
    assert watch.poll({"w": record(7, LeaseState.GONE)})
    assert not watch.poll({"w": record(7, LeaseState.GONE)})
    assert watch.detector.live() == []
    assert watch.suspected == ["w"]
    assert watch.detector.is_dead("w", watch.now)


def test_a_worker_declared_dead_is_dead_at_once(watch):
    watch.poll_for(12, {"w": record(7)})
    (expired,) = watch.detector.expired(watch.now)
    assert not watch.detector.is_dead("w", watch.now)
    watch.detector.record_dead(expired)
    assert watch.detector.is_dead("w", watch.now)
    assert watch.expired == []
    assert not watch.poll({"w": record(8, LeaseState.DEAD)})


def test_a_declaration_of_death_is_no_heartbeat(watch):
    watch.poll({"w": record(1)})
    watch.poll({"w": record(2)})
    watch.poll_for(LEASE_DURATION, {"w": record(2)})
    watch.poll({"w": record(3, LeaseState.DEAD)})  # another executor was faster
    assert watch.detector.silence_of("w", watch.now) == LEASE_DURATION + POLL


def test_a_holder_without_a_lease_expires_after_one_lease(watch):
    watch.poll({})
    assert not watch.detector.is_dead("w", watch.now)
    watch.poll_for(LEASE_DURATION - 1, {})
    assert watch.expired == []
    watch.poll({})
    assert watch.detector.expired(watch.now) == [Expired("w", None, "w", LEASE_DURATION)]
    watch.detector.record_dead(watch.detector.expired(watch.now)[0])
    assert watch.expired == []


def test_a_holder_without_a_lease_gets_a_full_lease_after_a_gap(watch):
    watch.poll({})
    watch.detector.is_dead("w", watch.now)
    watch.poll_for(8, {})
    watch.poll({}, after=LONG)
    assert watch.expired == []


def test_a_lease_that_appears_late_ends_the_count_for_its_holder(watch):
    watch.poll({})
    watch.detector.is_dead("w", watch.now)
    for count in range(1, 15):
        watch.poll({"w": record(count)})
        assert watch.expired == []


def test_active_leases_tell_whether_a_renewal_was_seen(watch):
    watch.poll({"w": record(7)})
    assert watch.detector.active == [(lease("w"), False)]
    watch.poll({"w": record(8)})
    assert watch.detector.active == [(lease("w"), True)]
    watch.poll({"w": record(8)})
    assert watch.detector.active == [(lease("w"), True)]
    watch.poll({"w": record(9, draining=True)})
    assert watch.detector.active == []
    watch.poll({"w": record(10)})
    watch.poll({"w": record(10, LeaseState.GONE)})
    assert watch.detector.active == []


def test_a_suspected_worker_is_not_active(watch):
    watch.poll_for(6, {"w": record(7)})
    assert watch.detector.active == []


def test_the_name_of_a_gone_worker_is_kept_for_a_while(watch):
    watch.poll({"w": record(7)})
    watch.poll({"w": record(7, LeaseState.GONE)})
    assert watch.detector.names(watch.now) == {"w@h"}
    watch.poll_for(RECENT - POLL, {"w": record(7, LeaseState.GONE)})
    assert watch.detector.names(watch.now) == {"w@h"}
    watch.poll({"w": record(7, LeaseState.GONE)})
    assert watch.detector.names(watch.now) == frozenset()


def test_the_name_of_a_worker_is_kept_while_it_may_be_alive(watch):
    watch.poll_for(2 * RECENT, {"w": record(7)})
    assert watch.detector.names(watch.now) == {"w@h"}


def test_a_worker_is_found_by_its_holder(watch):
    assert not watch.detector.knows_any
    watch.poll({"w": record(7), "x": LeaseRecord(None, 1, LeaseState.DEAD)})
    assert watch.detector.knows_any
    assert watch.detector.find("w") == lease("w")
    assert (watch.detector.find("x"), watch.detector.find("y")) == (None, None)
    assert watch.detector.silence_of("w", watch.now + 3) == 3
    assert watch.detector.silence_of("y", watch.now) is None


WORKERS = ("a", "b", "c")
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.5, 1.0, 2.0, MAX_POLL_GAP, MAX_POLL_GAP + 0.5, LONG]),  # seconds until this poll
        st.booleans(),  # whether the store is available
        st.frozensets(st.sampled_from(WORKERS)),  # the workers that have renewed
    ),
    max_size=40,
)


@given(STEPS)
def test_a_worker_expires_exactly_after_a_lease_of_silence_that_was_watched(steps):
    detector, now = FailureDetector(), 0.0
    counts = dict.fromkeys(WORKERS, 1)
    polled: dict[str, int] = {}
    watched_since: dict[str, float] = {}
    last_poll: float | None = None
    for seconds, is_available, renewed in steps:
        now += seconds
        counts.update({holder: counts[holder] + 1 for holder in renewed})
        if not is_available:
            detector.poll_failed()
            last_poll = None
            continue
        is_restart = last_poll is None or now - last_poll > MAX_POLL_GAP
        watched_since.update({holder: now for holder in WORKERS if is_restart or polled.get(holder) != counts[holder]})
        last_poll, polled = now, dict(counts)
        detector.update({holder: record(counts[holder], holder=holder) for holder in WORKERS}, now)
        expected = [holder for holder in WORKERS if now - watched_since[holder] >= LEASE_DURATION]
        assert [each.holder for each in detector.expired(now)] == expected
        assert [lease.holder for lease in detector.suspected(now)] == [
            holder for holder in WORKERS if now - watched_since[holder] >= SUSPECT_AFTER
        ]


def test_nobody_expires_while_the_store_refuses_writes(watch):
    leases = {"w": record(1)}
    checks = 0
    for _ in range(60):
        assert not watch.poll(leases)
        if watch.detector.needs_write_check(watch.now):
            checks += 1
            watch.detector.poll_failed()
        assert (watch.suspected, watch.expired) == ([], [])
    assert checks > 60 / (CHECK_WRITES_AFTER + 2 * POLL)


def test_writes_are_checked_only_if_a_worker_is_silent(watch):
    for count in range(1, 20):
        watch.poll({"w": record(count), "dead": record(1, LeaseState.DEAD)})
        assert not watch.detector.needs_write_check(watch.now)
    watch.poll_for(CHECK_WRITES_AFTER, {"w": record(count)})
    assert watch.detector.needs_write_check(watch.now)


def test_writes_are_checked_before_the_holder_of_a_claim_without_a_lease_expires(watch):
    watch.poll({})
    assert not watch.detector.is_dead("unknown", watch.now)
    assert not watch.detector.needs_write_check(watch.now)
    watch.poll_for(CHECK_WRITES_AFTER, {})
    assert watch.detector.needs_write_check(watch.now)
