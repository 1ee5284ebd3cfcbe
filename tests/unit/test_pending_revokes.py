"""The revokes that a peer has not received yet: merged, kept during an outage, sent when a try is due."""

from __future__ import annotations

import logging

import pytest

from celeriac.cluster import revoker
from celeriac.cluster.revoker import RETRY_DELAY, PendingRevokes
from celeriac.server_errors import is_server_error
from celeriac.testing import ManualClock

LATER = 2 * RETRY_DELAY  # seconds; longer than the jitter of one retry


class Peer:
    """Receives revokes, and raises while it is unavailable."""

    def __init__(self) -> None:
        self.received: list[tuple[list[str], bool]] = []
        self.is_available = True
        self.tries = 0
        self.clock = ManualClock(0.0)
        self.pending = PendingRevokes("the peer", self._receive, is_server_error, clock=self.clock)

    def _receive(self, ids: list[str], unless_started: bool) -> None:
        self.tries += 1
        if not self.is_available:
            raise OSError("refused")
        self.received.append((ids, unless_started))


@pytest.fixture
def peer() -> Peer:
    return Peer()


def test_revokes_of_both_kinds_are_sent_once_each(peer):
    peer.pending.add(["a", "b"], False)
    peer.pending.add(["c"], True)
    peer.pending.flush()
    peer.pending.flush()
    assert peer.received == [(["a", "b"], False), (["c"], True)]
    assert peer.pending.retry_at is None


def test_revoke_that_ends_a_running_task_wins_over_one_that_does_not(peer):
    peer.pending.add(["a", "b"], True)
    peer.pending.add(["a"], False)
    peer.pending.add(["a"], True)
    peer.pending.flush()
    assert peer.received == [(["a"], False), (["b"], True)]


def test_unavailable_peer_is_tried_again_only_when_it_is_due(peer, caplog):
    peer.is_available = False
    peer.pending.add(["a"], False)
    peer.pending.flush()
    peer.pending.add(["b"], False)
    peer.pending.flush()
    assert peer.tries == 1
    assert peer.pending.retry_at is not None
    assert 0.0 < peer.pending.retry_at <= LATER
    peer.clock.now = LATER
    peer.pending.flush()
    peer.is_available = True
    peer.clock.now = 2 * LATER
    peer.pending.flush()
    assert peer.received == [(["a", "b"], False)]
    assert [record.message for record in caplog.records] == [
        "the peer is unavailable, revokes wait: OSError: refused",
        f"the peer is available again after {2 * LATER:.1f} s",
    ]


def test_last_flush_tries_an_unavailable_peer_once_more(peer, caplog):
    caplog.set_level(logging.WARNING)
    peer.is_available = False
    peer.pending.add(["a", "b"], False)
    peer.pending.flush()
    peer.pending.flush(is_last=True)
    assert peer.tries == 2
    assert caplog.records[-1].message == "2 tasks were not revoked: the peer is unavailable: OSError: refused"


def test_oldest_revokes_are_dropped_when_too_many_are_pending(peer, monkeypatch):
    monkeypatch.setattr(revoker, "MAX_PENDING", 2)
    peer.pending.add(["a", "b", "c"], False)
    peer.pending.flush()
    assert peer.received == [(["b", "c"], False)]
