"""The result backend of the simulation, held against Redis and databases: which of two results of one id stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import pytest
from celery import states

from celeriac.broker.app import make_app
from celeriac.task.result import Result
from celeriac.task.state import State
from tests.simulation.servers import Store
from tests.simulation.world import World

pytestmark = [pytest.mark.celery, pytest.mark.filterwarnings("ignore:Call to deprecated setex")]  # by Celery

CELERY_STATES = {
    State.RUNNING: states.STARTED,
    State.SUCCESS: states.SUCCESS,
    State.FAILED: states.FAILURE,
    State.REVOKED: states.REVOKED,
}
StateAfter: TypeAlias = Callable[[State, State], State]


@pytest.fixture(params=["simulated", "redis", "sqlite", "postgres"])
def state_after(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateAfter]:
    """Yield a function that stores two results of one id, and returns the state of the one that stays."""
    if request.param == "simulated":
        yield simulated
        return
    match request.param:
        case "redis":
            url = request.getfixturevalue("shared_redis").url
        case "sqlite":
            url = f"db+sqlite:///{tmp_path}/results.db"
        case _:
            url = request.getfixturevalue("postgres").url

    def real(first: State, second: State) -> State:
        task_id = str(uuid4())
        for state in (first, second):
            value: object = {} if state in (State.RUNNING, State.SUCCESS) else RuntimeError(state)
            app.backend.store_result(task_id, value, CELERY_STATES[state])
        stored = app.backend.get_state(task_id)
        return next(state for state, name in CELERY_STATES.items() if name == stored)

    with closing(make_app(broker_url="memory://", result_backend=url)) as app:
        yield real


def simulated(first: State, second: State) -> State:
    store = Store(World(1))
    store.claims.claim("a", holder="h", delivery="d")
    for state in (first, second):
        store.put("a", Result(state))
    stored = store.fetch(["a"])["a"]
    assert isinstance(stored, Result)
    return stored.state


def test_a_success_stays_and_any_other_result_is_replaced(state_after):
    for first in CELERY_STATES:
        for second in CELERY_STATES:
            stays = first if first is State.SUCCESS else second
            assert state_after(first, second) is stays, f"{first}, then {second}"
