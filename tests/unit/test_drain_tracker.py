"""Which draining workers have stopped, by their leases and replies, without servers and sleeping."""

from __future__ import annotations

from collections.abc import Mapping

from celeriac.backend.claims.claim import Lease, LeaseRecord, LeaseState
from celeriac.cluster.drain import DrainTracker, matching_workers
from celeriac.config.lease import LEASE_DURATION


def lease(name: str, count: int, *running: str, state: LeaseState = LeaseState.LIVE) -> Mapping[str, LeaseRecord]:
    """One lease, by its holder."""
    record = Lease(holder=name, name=name, host="h", pid=1, boot_id="", queues=(), slots=4, running=running)
    return {name: LeaseRecord(record, count, state)}


def test_worker_that_ends_its_lease_has_stopped():
    tracker = DrainTracker(["w", "v"], {**lease("w", 1, "a"), **lease("v", 1), **lease("other", 1)}, 0.0)
    assert not tracker.needs_replies
    assert tracker.running() == {"w": 1, "v": 0}
    tracker.leases_read({**lease("w", 2, "a", "b"), **lease("v", 2, state=LeaseState.GONE)}, 1.0)
    assert tracker.running() == {"w": 2}
    tracker.leases_read({}, 2.0)
    assert tracker.running() == {}


def test_worker_without_heartbeats_was_killed():
    tracker = DrainTracker(["w"], lease("w", 1, "a"), 0.0)
    tracker.leases_read(lease("w", 2, "a"), 5.0)
    tracker.leases_read(lease("w", 2, "a"), 5.0 + LEASE_DURATION - 1)
    assert tracker.running() == {"w": 1}
    tracker.leases_read(lease("w", 2, "a"), 5.0 + LEASE_DURATION)
    assert tracker.running() == {}


def test_worker_without_a_live_lease_is_followed_by_its_replies():
    tracker = DrainTracker(["dead", "plain"], lease("dead", 1, state=LeaseState.DEAD), 0.0)
    assert tracker.needs_replies
    tracker.workers_replied(["plain", "other"])
    assert tracker.running() == {"plain": None}
    tracker.workers_replied(["other"])
    assert tracker.running() == {}
    assert not tracker.needs_replies


def test_name_without_a_host_matches_each_worker_of_that_name():
    workers = ["w1@a", "w1@b", "w2@a", "w2"]
    assert matching_workers("w1@b", workers) == ["w1@b"]
    assert matching_workers("w1", workers) == ["w1@a", "w1@b"]
    assert matching_workers("w2", workers) == ["w2"]
    assert matching_workers("w3", workers) == []
