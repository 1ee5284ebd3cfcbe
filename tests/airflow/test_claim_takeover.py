"""The reply of a worker to a message of a task that another worker has claimed."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from celery import states
from celery.exceptions import Ignore, Reject

from celeriac.airflow import claim_takeover
from celeriac.airflow.api_server import NotStarted
from celeriac.airflow.claim_takeover import TAKEOVER_TIMEOUT, HolderState, HolderWatch, claim_or_take_over
from celeriac.airflow.prefork_control import WorkloadPoolControl
from celeriac.airflow.task import hand_back_unstarted
from celeriac.backend.claims.claim import AlreadyClaimed, Granted, Lease, LeaseRecord, LeaseState, Superseded
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.errors import CommandFailed
from celeriac.worker.lease_manager import LeaseManager, SharedLease

OTHER = Lease(holder="other", name="celery@other", host="other", pid=1, boot_id="b", queues=("default",), slots=1)
ID = "a-task"


def lease(heartbeats: int, state: LeaseState = LeaseState.LIVE) -> LeaseRecord:
    return LeaseRecord(OTHER, heartbeats, state)


def test_holder_that_renews_its_lease_is_alive():
    watch = HolderWatch()
    assert watch.observe("other", lease(7), 0.0) is HolderState.UNKNOWN
    assert watch.observe("other", lease(8), 1.0) is HolderState.ALIVE


@pytest.mark.parametrize("record", [lease(7), lease(7, LeaseState.GONE), None], ids=["live", "ended", "no lease"])
def test_holder_without_a_renewal_is_silent_after_the_timeout(record):
    watch = HolderWatch()
    assert watch.observe("other", record, 0.0) is HolderState.UNKNOWN
    assert watch.observe("other", record, TAKEOVER_TIMEOUT - 0.1) is HolderState.UNKNOWN
    assert watch.observe("other", record, TAKEOVER_TIMEOUT) is HolderState.SILENT


def test_lease_that_has_ended_is_no_sign_of_life():
    watch = HolderWatch()
    watch.observe("other", lease(7), 0.0)
    assert watch.observe("other", lease(8, LeaseState.GONE), 1.0) is HolderState.UNKNOWN


@pytest.mark.parametrize("change", ["restart", "another holder"])
def test_watch_begins_again(change):
    watch = HolderWatch()
    watch.observe("other", None, 0.0)
    if change == "restart":
        watch.restart()
    holder = "other" if change == "restart" else "third"
    assert watch.observe(holder, None, TAKEOVER_TIMEOUT) is HolderState.UNKNOWN
    assert watch.observe(holder, None, 2 * TAKEOVER_TIMEOUT) is HolderState.SILENT


class Scene:
    """A worker that is alive, and a message of a task that another worker has claimed."""

    def __init__(self, lease_manager: LeaseManager, claims: MemoryClaims, pool_control: WorkloadPoolControl) -> None:
        self.lease_manager, self.claims, self.pool_control = lease_manager, claims, pool_control
        self.state = states.STARTED

    @property
    def task(self) -> Any:
        backend = SimpleNamespace(get_state=lambda _: self.state)
        return SimpleNamespace(request=SimpleNamespace(id=ID, hostname="celery@here"), backend=backend)

    def claim(self) -> Any:
        reply, _ = claim_or_take_over(self.lease_manager, self.pool_control, self.task)
        return reply


@pytest.fixture
def scene(monkeypatch, tmp_path):
    monkeypatch.setattr(claim_takeover, "TAKEOVER_TIMEOUT", 0.2)
    monkeypatch.setattr(claim_takeover, "LEASE_POLL_INTERVAL", 0.01)
    claims = MemoryClaims()
    with closing(WorkloadPoolControl(1.0)) as pool_control:
        lease = SharedLease()
        lease.write("w" * 32, float("inf"))
        lease_manager = LeaseManager(claims, pool_control, server=None, shared_lease=lease)
        claims.claim(ID, holder=OTHER.holder, delivery="d")
        yield Scene(lease_manager, claims, pool_control)


def before_each_poll(scene: Scene, monkeypatch: Any, action: Any) -> None:
    read_leases = scene.claims.leases

    def act_and_read() -> Any:
        action()
        return read_leases()

    monkeypatch.setattr(scene.claims, "leases", act_and_read)


def test_unclaimed_task_is_claimed_at_once(scene):
    scene.claims.release(ID, holder=OTHER.holder)
    assert isinstance(scene.claim(), Granted)


def test_message_is_dropped_if_a_live_worker_has_the_task(scene, monkeypatch):
    before_each_poll(scene, monkeypatch, lambda: scene.claims.renew(OTHER))
    assert scene.claim() == AlreadyClaimed(OTHER.holder)


@pytest.mark.parametrize("has_lease", [True, False], ids=["with a lease", "without a lease"])
def test_task_of_a_silent_worker_is_claimed_again(scene, has_lease):
    if has_lease:
        scene.claims.renew(OTHER)
    assert isinstance(scene.claim(), Granted)
    assert scene.claims.leases()[OTHER.holder].state is LeaseState.DEAD
    assert scene.claims.read([ID])[ID].holder == "w" * 32


def test_message_is_dropped_if_an_executor_fences_the_claim(scene, monkeypatch):
    before_each_poll(scene, monkeypatch, lambda: scene.claims.fence(list(scene.claims.read([ID]).values())))
    assert scene.claim() == Superseded()


def test_ended_task_is_not_claimed_again(scene):
    scene.state = states.SUCCESS
    assert scene.claim() == AlreadyClaimed(OTHER.holder)


def test_message_is_handed_back_if_the_worker_shuts_down_before_the_decision(scene, monkeypatch):
    before_each_poll(scene, monkeypatch, scene.pool_control.take_no_more)
    assert scene.claim() is None


def test_undecided_task_does_not_count_as_running(scene, monkeypatch):
    request = SimpleNamespace(id=ID)
    observed = []
    before_each_poll(scene, monkeypatch, lambda: observed.append(scene.pool_control.has_started(request)))
    scene.claim()
    assert set(observed) == {False}
    assert scene.pool_control.has_started(request)


@pytest.mark.parametrize(
    ("what", "raised"), [(None, Reject), ("cancelled", CommandFailed), ("fenced", Ignore)], ids=lambda value: str(value)
)
def test_task_that_is_handed_back_is_revoked_only_if_it_was_cancelled(scene, what, raised):
    scene.claims.release(ID, holder=OTHER.holder)
    scene.claim()
    if what == "cancelled":
        scene.claims.cancel([ID])
    elif what == "fenced":
        scene.claims.fence(list(scene.claims.read([ID]).values()))
    backend = SimpleNamespace(store_result=lambda *_, **__: None)
    task = SimpleNamespace(request=SimpleNamespace(id=ID, argsrepr=""), backend=backend)
    with pytest.raises(raised):
        hand_back_unstarted(task, None, scene.lease_manager, NotStarted("the API server was unavailable"))
