"""The places of limits that a worker takes before it claims a task, and gives up again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.exceptions import WorkerLostError
from celery.worker.request import Request

from celeriac.backend.claims.places import LeaveReason, TakeReply
from celeriac.worker import outage
from celeriac.worker.acks import Acks, request_class
from celeriac.worker.lease_manager import LeaseManager, SharedLease
from celeriac.worker.taken_places import NoPlace, TakenPlaces
from celeriac.worker.task import leave_places

LIMITS = [("key:db", 1, None)]


class OnePlace:
    """A store with one place. The first replies are lost."""

    def __init__(self, lost: int = 0) -> None:
        self.lost, self.holder = lost, ""

    def take(self, request: Any, *, holder: str, delivery: str) -> TakeReply:
        reply = TakeReply.TAKEN if self.holder in ("", delivery) else TakeReply.HELD
        self.holder = self.holder or delivery
        if self.lost > 0:
            self.lost -= 1
            raise redis.TimeoutError("no reply in time")
        return reply

    def leave(self, request: Any, *, holder: str, delivery: str, reason: LeaveReason) -> None:
        if self.holder == delivery or (reason is LeaveReason.KILLED and self.holder.startswith(delivery)):
            self.holder = ""


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_DELAY", 0.0)


def never_then_always() -> Callable[[], bool]:
    answers: Iterator[bool] = chain([False], repeat(True))
    return lambda: next(answers)


def manager_of(store: Any) -> LeaseManager:
    lease = SharedLease()
    lease.write("one", time.monotonic())
    control: Any = None
    return LeaseManager(control, control, server=None, places=lambda: store, shared_lease=lease)


def test_a_place_is_given_up_whose_reply_was_lost_when_the_worker_is_paused():
    store: Any = OnePlace(lost=1)
    request = SimpleNamespace(hostname="here")
    reply, _ = manager_of(store).claim_with_limits("a", request, never_then_always(), LIMITS)
    assert (reply, store.holder) == (None, "")


class FullLater(OnePlace):
    """A store that gives the place, and says at the next try that the rate has no place any more."""

    def take(self, request: Any, *, holder: str, delivery: str) -> TakeReply:
        if self.holder == delivery:
            return TakeReply.FULL
        return super().take(request, holder=holder, delivery=delivery)


def test_a_place_is_given_up_if_another_limit_is_full_at_the_next_try(monkeypatch):
    store: Any = FullLater()
    manager = manager_of(store)

    def claim(*_: Any, **__: Any) -> None:
        raise redis.TimeoutError("no reply in time")

    monkeypatch.setattr(manager, "claims", SimpleNamespace(claim=claim))
    request = SimpleNamespace(hostname="here")
    reply, _ = manager.claim_with_limits("a", request, lambda: False, LIMITS)
    assert (reply, store.holder) == (NoPlace(TakeReply.FULL), "")


def test_a_copy_of_a_message_leaves_the_place_of_the_first_one():
    store: Any = OnePlace()
    places = TakenPlaces(lambda: store)
    assert places.take("a", LIMITS, "one", "first") is None
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(places.take, "a", LIMITS, "one", "copy").result() == NoPlace(TakeReply.HELD)
        assert thread.submit(places.pop, "a").result() is None
    leave = places.pop("a")
    assert leave is not None
    leave(LeaveReason.ENDED)
    assert (store.holder, places.pop("a")) == ("", None)


@pytest.mark.parametrize(("error", "is_free"), [(WorkerLostError("signal 9"), True), (ValueError(), False)])
def test_the_place_of_a_child_that_was_killed_is_given_up(monkeypatch, error, is_free):
    monkeypatch.setattr(Request, "on_failure", lambda *_: None)
    store: Any = OnePlace()
    TakenPlaces(lambda: store).take("a", LIMITS, "one", "first")
    measures: Any = SimpleNamespace(ended=lambda *_: None)
    request = object.__new__(request_class(Acks(), measures, partial(leave_places, manager_of(store))))
    request.id, request.worker_pid, request.time_start = "a", os.getpid(), None
    request._message = SimpleNamespace(payload=[[{"limits": LIMITS}]])
    request.on_failure(SimpleNamespace(exception=error))
    for thread in threading.enumerate():
        if thread.name == "celeriac-killed":
            thread.join()
    assert store.holder == ("" if is_free else f"{os.getpid()}.first")
