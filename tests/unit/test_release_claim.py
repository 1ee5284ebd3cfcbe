"""A worker that shuts down releases the claim of a command that was cut short, and tells what has become of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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
