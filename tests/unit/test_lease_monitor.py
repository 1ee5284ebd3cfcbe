"""Test how the deaths of workers are reported: with polls made by hand, on a clock that moves when told to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ReadOnlyError

from celeriac.backend.claims import lease_monitor
from celeriac.backend.claims.claim import Lease, LeaseState
from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.config.lease import LEASE_DURATION

HOLDERS = ("a", "b", "c")
STEP = 4.0  # seconds between two polls; after a longer gap every worker would get a full lease again
TIMEOUT = 10.0


def lease_of(name: str, **fields: Any) -> Lease:
    return Lease(holder=name, name=name, host="h", pid=1, boot_id="", queues=("q",), slots=1, **fields)


class FailingClaims(MemoryClaims):
    error: Exception | None = None
    """Raised when the second worker is to be declared dead."""

    def declare_dead(self, holder: str, heartbeat_count: int | None) -> bool:
        if holder == HOLDERS[1] and self.error is not None:
            raise self.error
        return super().declare_dead(holder, heartbeat_count)


class Watched:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.claims, self.news = FailingClaims(), 0
        for name in HOLDERS:
            self.claims.renew(lease_of(name))
        self.monitor = LeaseMonitor(self.claims, on_news=self._count, poll_interval=10_000.0)
        self.monitor.wait_for_poll(TIMEOUT)
        self._now = time.monotonic()
        monkeypatch.setattr(lease_monitor, "time", SimpleNamespace(monotonic=lambda: self._now))

    def poll_until_expired(self) -> None:
        """Poll until just before all leases have expired, forget the news until then, and poll once more."""
        for _ in range(int(LEASE_DURATION / STEP)):
            self.poll()
        self.news = 0
        self.poll()

    def poll(self) -> None:
        self._now += STEP
        self.monitor.poll()

    def dead(self) -> list[str]:
        return [holder for holder, record in self.claims.leases().items() if record.state is LeaseState.DEAD]

    def _count(self) -> None:
        self.news += 1


@pytest.fixture
def watched(monkeypatch) -> Iterator[Watched]:
    watched = Watched(monkeypatch)
    yield watched
    watched.monitor.close()


def test_workers_that_died_together_are_reported_once(watched):
    watched.poll_until_expired()
    assert (watched.dead(), watched.news) == ([*HOLDERS], 1)
    assert watched.monitor.died == len(HOLDERS)
    assert watched.monitor.has_news
    watched.monitor.take_news()
    assert not watched.monitor.has_news
    watched.poll()
    assert watched.news == 1


def test_a_monitor_tells_about_single_workers(watched):
    assert [watched.monitor.find(name) for name in ("a", "unknown")] == [lease_of("a"), None]
    watched.claims.renew(lease_of("a"))
    watched.poll()
    watched.poll()
    assert watched.monitor.silence_of("a") == pytest.approx(STEP)
    assert watched.monitor.silence_of("unknown") is None
    watched.poll_until_expired()
    assert [watched.monitor.is_dead(name) for name in ("a", "unknown")] == [True, False]


def test_a_worker_that_cannot_be_declared_dead_hides_no_other(watched):
    watched.claims.error = ValueError("no server would raise this")
    watched.poll_until_expired()
    assert (watched.dead(), watched.news) == (["a", "c"], 1)


def test_deaths_before_an_error_of_the_server_are_reported(watched):
    watched.claims.error = ConnectionRefusedError()
    with pytest.raises(ConnectionRefusedError):
        watched.poll_until_expired()
    assert (watched.dead(), watched.news) == (["a"], 1)
    watched.claims.error = None
    watched.poll()
    assert (watched.dead(), watched.news) == ([*HOLDERS], 2)


def test_a_worker_that_has_renewed_meanwhile_is_not_reported_as_dead(watched, monkeypatch):
    monkeypatch.setattr(watched.claims, "declare_dead", lambda holder, heartbeat_count: False)
    watched.poll_until_expired()
    assert (watched.monitor.died, watched.news) == (0, 0)
    assert not watched.monitor.is_dead("a")


def test_workers_are_counted_by_state(watched):
    watched.claims.end_lease("c")
    for name, fields in (("a", {"draining": True}), ("b", {"paused": True}), ("d", {})):
        watched.claims.renew(lease_of(name, **fields))
    watched.poll()
    assert watched.monitor.count_by_state() == {"live": 1, "draining": 1, "paused": 1, "suspected": 0}
    watched.claims.renew(lease_of("d"))
    watched.poll()
    watched.claims.renew(lease_of("d"))
    watched.poll()
    assert watched.monitor.count_by_state() == {"live": 1, "draining": 0, "paused": 0, "suspected": 2}
    assert {lease.name for lease in watched.monitor.suspected()} == {"a", "b", "c"}


def test_an_error_of_the_server_restarts_the_silence_of_all_workers(watched, monkeypatch):
    read = watched.claims.leases

    def fail() -> None:
        raise ConnectionError("refused")

    for _ in range(int(LEASE_DURATION / STEP)):
        watched.poll()
    monkeypatch.setattr(watched.claims, "leases", fail)
    monkeypatch.setattr(watched.monitor, "_poll_interval", 0.0)
    before = watched.monitor.polls
    assert watched.monitor._run_round()
    assert (watched.monitor.polls, watched.monitor.has_polled) == (before + 1, False)
    monkeypatch.setattr(watched.claims, "leases", read)
    watched.poll()
    assert (watched.dead(), watched.monitor.has_polled) == ([], True)


def test_another_error_of_a_poll_is_raised(watched, monkeypatch):
    def fail() -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(watched.claims, "leases", fail)
    with pytest.raises(LookupError):
        watched.monitor._run_round()
    assert not watched.monitor.has_polled


def test_a_new_monitor_has_no_news(watched):
    assert (watched.monitor.has_news, watched.monitor.polls, watched.news) == (False, 1, 0)
    watched.poll()
    assert watched.monitor.polls == 2


def test_no_worker_is_declared_dead_while_the_store_refuses_writes(watched, monkeypatch, caplog):
    def refuse() -> None:
        raise ReadOnlyError("READONLY You can't write against a read only replica.")

    with monkeypatch.context() as patch:
        patch.setattr(watched.claims, "check_writable", refuse)
        watched.poll_until_expired()
        watched.poll()
        assert (watched.dead(), watched.monitor.has_polled) == ([], False)
        assert len(caplog.messages) == 1
    watched.poll()
    assert watched.monitor.has_polled
    assert len(caplog.messages) == 2
    watched.poll_until_expired()
    assert watched.dead() == [*HOLDERS]


def test_nothing_is_written_while_all_workers_renew(watched, monkeypatch):
    checks: list[None] = []
    monkeypatch.setattr(watched.claims, "check_writable", lambda: checks.append(None))
    for _ in range(3):
        for name in HOLDERS:
            watched.claims.renew(lease_of(name))
        watched.poll()
    assert not checks
    watched.poll()
    assert len(checks) == 1


def test_an_outage_during_the_check_of_writes_is_an_error_of_the_poll(watched, monkeypatch):
    def fail() -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(watched.claims, "check_writable", fail)
    with pytest.raises(ConnectionRefusedError):
        watched.poll_until_expired()
    assert watched.dead() == []


def test_a_worker_that_has_ended_its_lease_is_news(watched):
    watched.claims.end_lease("a")
    watched.poll()
    assert (watched.news, watched.monitor.has_news) == (1, True)
    for name in ("b", "c"):
        watched.claims.renew(lease_of(name))
    watched.poll()
    assert watched.news == 1


def test_the_end_of_an_outage_is_logged(watched, monkeypatch, caplog):
    def fail() -> None:
        raise ConnectionError("refused")

    caplog.set_level(logging.DEBUG, "celeriac")
    monkeypatch.setattr(watched.monitor, "_poll_interval", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(watched.claims, "leases", fail)
        assert watched.monitor._run_round()
    watched.poll()
    watched.poll()
    assert ["is available again" in message for message in caplog.messages] == [False, True]


class SlowClaims(MemoryClaims):
    """Claims whose leases can be read once a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.may_read = threading.Event()

    def leases(self) -> Any:
        self.may_read.wait(TIMEOUT)
        return super().leases()


def test_a_caller_waits_for_the_first_poll_and_close_ends_the_thread():
    before = set(threading.enumerate())
    claims = SlowClaims()
    claims.renew(lease_of("a"))
    monitor = LeaseMonitor(claims, on_news=lambda: None, poll_interval=10_000.0)
    threading.Timer(0.05, claims.may_read.set).start()
    monitor.wait_for_poll(TIMEOUT)
    assert (monitor.has_polled, monitor.knows_any) == (True, True)
    assert [each.name for each in set(threading.enumerate()) - before if each.daemon] == ["celeriac-leases"]
    monitor.close()
    assert not [each for each in set(threading.enumerate()) - before if each.name == "celeriac-leases"]


class UnavailableClaims(MemoryClaims):
    is_closed = False

    def leases(self) -> Any:
        raise ConnectionRefusedError

    def close(self) -> None:
        self.is_closed = True


def test_close_ends_the_wait_for_a_first_poll_and_closes_the_claims():
    claims = UnavailableClaims()
    monitor = LeaseMonitor(claims, on_news=lambda: None, poll_interval=10_000.0)
    waiter = threading.Thread(target=monitor.wait_for_poll, args=(10_000.0,), daemon=True)
    waiter.start()
    monitor.close()
    waiter.join(TIMEOUT)
    assert (waiter.is_alive(), claims.is_closed) == (False, True)
