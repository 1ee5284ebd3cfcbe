"""Servers for whoever asks, and Hypothesis profiles: few examples by default, many with CELERIAC_LONG=1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec

import celery
import kombu
import pytest
from hypothesis import settings

from tests.servers import PostgresServer, RabbitServer, RedisServer, ValkeyServer

collect_ignore = [] if find_spec("airflow") else ["airflow"]  # `make test-airflow` has it

settings.register_profile("short", max_examples=40, stateful_step_count=50, deadline=None, print_blob=True)
settings.register_profile("long", max_examples=1_000, stateful_step_count=100, deadline=None, print_blob=True)
settings.load_profile("long" if os.environ.get("CELERIAC_LONG") == "1" else "short")


def pytest_report_header() -> str:
    return f"Celery {celery.__version__}, Kombu {kombu.__version__}"


@pytest.fixture(scope="session", autouse=True)
def state_of_ones_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where runs are remembered that name no ledger: not where those of whoever runs the tests are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """New for each test."""
    with closing(RedisServer()) as server:
        yield server


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with closing(RedisServer()) as server:
        yield server


@pytest.fixture(scope="module")
def shared_valkey() -> Iterator[RedisServer]:
    with closing(ValkeyServer()) as server:
        yield server


@pytest.fixture(scope="module")
def rabbit() -> Iterator[RabbitServer]:
    with closing(RabbitServer()) as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with closing(PostgresServer()) as server:
        yield server
