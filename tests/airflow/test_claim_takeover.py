"""What a worker does with a message of a task that another one has claimed."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from celery import states

from celeriac.airflow import claim_takeover
from celeriac.airflow.claim_takeover import claim_or_inherit
from celeriac.airflow.prefork_control import WorkloadPoolControl
from celeriac.backend.claims.claim import AlreadyClaimed, Granted, Lease, LeaseState, Superseded
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.worker.lease_manager import LeaseManager

OTHER = Lease(holder="other", name="celery@other", host="other", pid=1, boot_id="b", queues=("default",), slots=1)
ID = "a-task"


class Stage:
    """A worker that is alive, and a message of a task that another one has claimed."""

    def __init__(self, keeper: LeaseManager, claims: MemoryClaims, children: WorkloadPoolControl) -> None:
        self.keeper, self.claims, self.children = keeper, claims, children
        self.state = states.STARTED

    @property
    def task(self) -> Any:
        backend = SimpleNamespace(get_state=lambda _: self.state)
        return SimpleNamespace(request=SimpleNamespace(id=ID, hostname="celery@here"), backend=backend)

    def answer(self) -> Any:
        answer, _ = claim_or_inherit(self.keeper, self.children, self.task)
        return answer


@pytest.fixture
def stage(monkeypatch, tmp_path):
    monkeypatch.setattr(claim_takeover, "PATIENCE", 0.2)
    monkeypatch.setattr(claim_takeover, "LOOK", 0.01)
    claims = MemoryClaims()
    with closing(WorkloadPoolControl(1.0)) as children:
        keeper = LeaseManager(claims, children, store=None)
        keeper.card.write("w" * 32, float("inf"))
        claims.claim(ID, holder=OTHER.holder, delivery="d")
        yield Stage(keeper, claims, children)


def at_each_look(stage: Stage, monkeypatch: Any, happens: Any) -> None:
    look = stage.claims.leases

    def looked() -> Any:
        happens()
        return look()

    monkeypatch.setattr(stage.claims, "leases", looked)


def test_what_nobody_has_claimed_begins_at_once(stage):
    stage.claims.release(ID, holder=OTHER.holder)
    assert isinstance(stage.answer(), Granted)


def test_a_message_is_dropped_whose_task_a_living_worker_has(stage, monkeypatch):
    at_each_look(stage, monkeypatch, lambda: stage.claims.renew(OTHER))
    assert stage.answer() == AlreadyClaimed(OTHER.holder)


@pytest.mark.parametrize("renewed", [True, False], ids=["with a lease", "without any"])
def test_what_a_silent_worker_has_claimed_is_claimed_anew_if_nobody_else_judges(stage, renewed):
    if renewed:
        stage.claims.renew(OTHER)
    assert isinstance(stage.answer(), Granted)
    assert stage.claims.leases()[OTHER.holder].state is LeaseState.DEAD
    assert stage.claims.read([ID])[ID].holder == "w" * 32


def test_an_executor_that_fences_a_dead_worker_off_has_the_last_word(stage, monkeypatch):
    at_each_look(stage, monkeypatch, lambda: stage.claims.fence(list(stage.claims.read([ID]).values())))
    assert stage.answer() == Superseded()


def test_what_has_ended_does_not_begin_again(stage):
    stage.state = states.SUCCESS
    assert stage.answer() == AlreadyClaimed(OTHER.holder)


def test_a_worker_that_goes_hands_back_what_it_is_in_doubt_of(stage, monkeypatch):
    at_each_look(stage, monkeypatch, stage.children.take_no_more)
    assert stage.answer() is None


def test_what_is_in_doubt_does_not_count_as_running(stage, monkeypatch):
    request = SimpleNamespace(id=ID)
    seen = []
    at_each_look(stage, monkeypatch, lambda: seen.append(stage.children.has_started(request)))
    stage.answer()
    assert set(seen) == {False}
    assert stage.children.has_started(request)
