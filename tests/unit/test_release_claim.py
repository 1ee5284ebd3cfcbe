"""A worker that shuts down releases the claim of a command that was cut short, and tells what has become of it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from celery.exceptions import Ignore

from celeriac.backend.claims.memory import MemoryClaims
from celeriac.errors import CommandFailed
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.task import release_claim

FAILURE = CommandFailed({"reason": "lost"})


@pytest.fixture
def claims() -> MemoryClaims:
    return MemoryClaims(lambda task_id: None)


@pytest.fixture
def lease_manager(claims: MemoryClaims) -> LeaseManager:
    pool_control: Any = SimpleNamespace()
    manager = LeaseManager(claims, pool_control, server=None)
    claims.claim("a", holder=manager.holder, delivery="d")
    return manager


@pytest.fixture
def task() -> Any:
    backend = SimpleNamespace(store_result=lambda *_, **__: None)
    return SimpleNamespace(backend=backend, request=SimpleNamespace(id="a"))


def test_a_claim_that_is_released_lets_the_task_run_elsewhere(claims, lease_manager, task):
    release_claim(lease_manager, task, FAILURE, revoked="revoked")
    assert claims.read(["a"]) == {}


def test_a_task_that_was_cancelled_ends_as_revoked(claims, lease_manager, task):
    claims.cancel(["a"])
    with pytest.raises(CommandFailed) as raised:
        release_claim(lease_manager, task, FAILURE, revoked="revoked")
    assert raised.value.report["reason"] == "revoked"


def test_a_task_whose_worker_was_declared_dead_is_not_told_as_revoked(claims, lease_manager, task):
    """Say nothing about it: the executor tells it as lost, and it runs elsewhere."""
    claims.fence(list(claims.read(["a"]).values()))
    with pytest.raises(Ignore):
        release_claim(lease_manager, task, FAILURE, revoked="revoked")


def test_a_task_whose_worker_has_a_new_holder_is_not_told_as_revoked(claims, lease_manager, task):
    """The worker was declared dead, and has a new lease. The executor fences the old claim a moment later."""
    lease_manager._shared_lease.write("b" * 32, 0.0)
    with pytest.raises(Ignore):
        release_claim(lease_manager, task, FAILURE, revoked="revoked")
    assert claims.read(["a"])


def test_a_task_that_another_worker_has_claimed_is_not_told_as_revoked(claims, lease_manager, task):
    """The reply to the first release was lost, and the broker has given the message to another worker since."""
    claims.release("a", holder=lease_manager.holder)
    claims.claim("a", holder="another", delivery="e")
    with pytest.raises(Ignore):
        release_claim(lease_manager, task, FAILURE, revoked="revoked")


def test_a_task_is_not_told_as_revoked_while_the_store_does_not_say_why(claims, lease_manager, task, monkeypatch):
    claims.cancel(["a"])
    claims.read = unavailable
    monkeypatch.setattr("celeriac.worker.lease_manager.RELEASE_TIMEOUT", 0.1)
    with pytest.raises(Ignore):
        release_claim(lease_manager, task, FAILURE, revoked="revoked")


def unavailable(ids: Sequence[str]) -> NoReturn:
    raise ConnectionError("refused")
