"""Start servers for the tests that ask for them, and load a Hypothesis profile: many examples in a long run."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import celery
import kombu
import pytest
from hypothesis import HealthCheck, settings

from tests.support.long import LONG
from tests.support.servers import PostgresServer, RabbitServer, RedisServer, ValkeyServer

if TYPE_CHECKING:
    from tests.support.browser import Browser  # selenium is not in every environment that the tests run in

collect_ignore = [] if find_spec("airflow") else ["airflow"]  # `make test-airflow` has it

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("short", UNTIMED, max_examples=40, stateful_step_count=50)
settings.register_profile("long", UNTIMED, max_examples=1_000, stateful_step_count=100)
settings.load_profile("long" if LONG else "short")


def pytest_configure() -> None:
    """Let the commands of the tests take Ctrl-C: what a shell runs in its background inherits that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    forget_width()


def forget_width() -> None:
    """Let no command inherit the width of a terminal: lines would be folded.

    Pytest imports readline, which sets these variables for child processes alone, and so for the workers of xdist.
    """
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
        os.unsetenv(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the fault tests first: they take longest, and at the end of a run one of them would run alone."""
    items.sort(key=lambda item: "faults" not in item.path.parts)


def pytest_report_header() -> str:
    return f"Celery {celery.__version__}, Kombu {kombu.__version__}"


@pytest.fixture(scope="session", autouse=True)
def private_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests away from the user's own ledger and control sockets: runs that name no ledger are not recorded,
    and every session of the tests has folders of its own."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="celeriac-tests-") as runtime:
        patch.setenv("XDG_RUNTIME_DIR", runtime)  # not below pytest's folder: the path of a socket must be short
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("CELERIAC_LEDGER", "none")
        yield


@pytest.fixture
def collect_cut_sockets() -> Iterator[None]:
    """Collect the sockets that py-amqp leaves to the garbage collector when a connection is cut, in the test that cut
    it, so that no later test is blamed for them."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A new server for each test."""
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
    """One server for all modules, each with a virtual host of its own: a start takes five seconds."""
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


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for a module: a start takes a second."""
    from tests.support.browser import open_browser

    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Browser) -> Iterator[Browser]:
    """A Chromium without a page and without cookies. It sees nothing beyond this machine."""
    yield shared_browser
    shared_browser.forget()
