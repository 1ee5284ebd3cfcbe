"""Results of a worker are stored: after a refusal, over a malformed value, or as a failure that can be stored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from uuid import uuid4

import pytest
from celery import Celery, states
from redis import Redis

from celeriac.broker.celery_internals import drop_idle_connections
from celeriac.config.settings import read_settings
from celeriac.worker.app import worker_app
from tests.support.cli_runner import until
from tests.support.servers import PostgresServer, RedisServer

pytestmark = [pytest.mark.celery, pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")]

REPORT = {"reason": None, "detail": None, "execution": {"host": "here"}}


@contextmanager
def worker_app_at(broker: str, backend: str) -> Iterator[Celery]:
    connection = read_settings({"broker": broker, "backend": backend}, environment={}).connection
    with closing(worker_app(connection, in_threads=True)) as app:
        yield app
        drop_idle_connections(app.backend)


@pytest.fixture(params=["redis", "postgres"])
def server(request: pytest.FixtureRequest) -> RedisServer | PostgresServer:
    server: RedisServer | PostgresServer = request.getfixturevalue(
        "shared_redis" if request.param == "redis" else "postgres"
    )
    return server


@pytest.fixture
def app(server, shared_redis) -> Iterator[Celery]:
    with worker_app_at(shared_redis.url, server.url) as app:
        yield app


def test_a_result_waits_for_a_server_that_refuses_writes(server, app, caplog):
    task_id = uuid4().hex
    app.backend.store_result(task_id, {"hostname": "w@here"}, states.STARTED)
    with server.read_only():
        thread = threading.Thread(target=lambda: app.backend.store_result(task_id, REPORT, states.SUCCESS))
        thread.start()
        until(lambda: "refuses requests" in caplog.text, "a line about the refusal")
        assert thread.is_alive()
    thread.join()
    assert app.backend.get_result(task_id) == REPORT
    assert caplog.text.count("refuses requests") == 1
    assert caplog.text.count("available again") == 1


def test_a_malformed_value_in_the_place_of_a_result_is_overwritten(shared_redis):
    task_id = uuid4().hex
    with worker_app_at(shared_redis.url, shared_redis.url) as app, Redis(port=shared_redis.port) as client:
        for value in (b"garbage", b"null", b"[1]", b'{"status": 5}', b"\xff"):
            client.set(f"celery-task-meta-{task_id}", value)
            report = {**REPORT, "detail": repr(value)}
            app.backend.store_result(task_id, report, states.SUCCESS)
            assert app.backend.get_result(task_id) == report


def test_a_failure_that_cannot_be_stored_is_replaced_by_one_that_can(shared_redis, postgres):
    task_id = uuid4().hex
    with worker_app_at(shared_redis.url, postgres.url) as app:
        app.backend.store_result(task_id, ValueError("a\0b"), states.FAILURE, traceback="no text of PostgreSQL: \0")
        meta = app.backend.get_task_meta(task_id)
    assert meta["status"] == states.FAILURE
    assert "could not be stored" in str(meta["result"])


def test_a_success_that_cannot_be_stored_raises(app):
    with pytest.raises(Exception, match=r"serializ|pickle"):
        app.backend.store_result(uuid4().hex, threading.Lock(), states.SUCCESS)


def test_threads_that_store_the_same_new_task_all_succeed(app):
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            task_id = uuid4().hex
            stored = [pool.submit(store, app, task_id) for _ in range(4)]
            assert [future.result() for future in stored] == [REPORT] * 4
            assert app.backend.get_state(task_id) == states.SUCCESS


def store(app: Celery, task_id: str) -> object:
    return app.backend.store_result(task_id, REPORT, states.SUCCESS)  # the app makes a backend for each thread
