"""The result backend of the simulation, held against Redis and databases: which of two results of one id stays.

Celery keeps a success in Redis; in a database it keeps one since version 5.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import celery
import pytest
from celery import Celery, states
from packaging.version import Version

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
DATABASES_KEEP_SUCCESS = Version(celery.__version__).release >= (5, 7)


class Backend(NamedTuple):
    state_after: Callable[[State, State], State]
    """Stores two results of one id, and returns the state of the one that stays."""

    keeps_success: bool


@pytest.fixture(params=["keeps success", "replaces success", "redis", "sqlite", "postgres"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    match request.param:
        case "keeps success" | "replaces success":
            keeps_success = request.param == "keeps success"
            yield Backend(partial(simulated, keeps_success), keeps_success)
            return
        case "redis":
            url = request.getfixturevalue("shared_redis").url
        case "sqlite":
            url = f"db+sqlite:///{tmp_path}/results.db"
        case _:
            url = request.getfixturevalue("postgres").url
    with closing(make_app(broker_url="memory://", result_backend=url)) as app:
        yield Backend(partial(real, app), request.param == "redis" or DATABASES_KEEP_SUCCESS)


def real(app: Celery, first: State, second: State) -> State:
    task_id = str(uuid4())
    for state in (first, second):
        value: object = {} if state in (State.RUNNING, State.SUCCESS) else RuntimeError(state)
        app.backend.store_result(task_id, value, CELERY_STATES[state])
    stored = app.backend.get_state(task_id)
    return next(state for state, name in CELERY_STATES.items() if name == stored)


def simulated(keeps_success: bool, first: State, second: State) -> State:
    store = Store(World(1), keeps_success=keeps_success)
    store.claims.claim("a", holder="h", delivery="d")
    for state in (first, second):
        store.put("a", Result(state))
    stored = store.fetch(["a"])["a"]
    assert isinstance(stored, Result)
    return stored.state


def test_a_success_stays_where_celery_keeps_it_and_any_other_result_is_replaced(backend):
    for first in CELERY_STATES:
        for second in CELERY_STATES:
            stays = first if first is State.SUCCESS and backend.keeps_success else second
            assert backend.state_after(first, second) is stays, f"{first}, then {second}"
