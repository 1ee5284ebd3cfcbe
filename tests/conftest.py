"""Servers for whoever asks, and Hypothesis profiles: few examples by default, many with CELERIAC_LONG=1."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from tempfile import TemporaryDirectory

import celery
import kombu
import pytest
from hypothesis import HealthCheck, settings

from tests.support.servers import PostgresServer, RabbitServer, RedisServer, ValkeyServer

collect_ignore = [] if find_spec("airflow") else ["airflow"]  # `make test-airflow` has it

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("short", UNTIMED, max_examples=40, stateful_step_count=50)
settings.register_profile("long", UNTIMED, max_examples=1_000, stateful_step_count=100)
settings.load_profile("long" if os.environ.get("CELERIAC_LONG") == "1" else "short")


def pytest_report_header() -> str:
    return f"Celery {celery.__version__}, Kombu {kombu.__version__}"


@pytest.fixture(scope="session", autouse=True)
def state_of_ones_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs that name no ledger are not remembered; if a test wants that, not where those of whoever runs the tests
    are. Nor do executors meet at their desks those of the tests beside."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="celeriac-desk-") as runtime:
        patch.setenv("XDG_RUNTIME_DIR", runtime)  # not among pytest's own: a socket's path must be short
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("CELERIAC_LEDGER", "none")
        yield


CUTTING = {"test_cluster_faults", "test_connections", "test_lost_workers", "test_publisher", "test_random_faults"}


@pytest.fixture(autouse=True)
def what_clients_leave(request: pytest.FixtureRequest) -> Iterator[None]:
    """py-amqp leaves the socket of a connection that was cut to the garbage collector. It is swept up where it was
    left, so that no other test is blamed for it."""
    yield
    if request.module.__name__.rpartition(".")[2] in CUTTING:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


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


@pytest.fixture(scope="session")
def rabbit_for_all() -> Iterator[RabbitServer]:
    """One start takes five seconds of a processor, a virtual host of its own for each module one."""
    with closing(RabbitServer()) as server:
        yield server


@pytest.fixture(scope="module")
def rabbit(rabbit_for_all: RabbitServer) -> Iterator[RabbitServer]:
    with rabbit_for_all.lent() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_for_all() -> Iterator[PostgresServer]:
    with closing(PostgresServer()) as server:
        yield server


@pytest.fixture(scope="module")
def postgres(postgres_for_all: PostgresServer) -> Iterator[PostgresServer]:
    with postgres_for_all.lent() as server:
        yield server
