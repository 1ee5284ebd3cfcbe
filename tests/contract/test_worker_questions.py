"""Questions to workers by Celery's remote control: which replies count, and when a question ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery

from celeriac.broker.app import make_app
from celeriac.cluster.worker_questions import ask_workers
from tests.support.cli_runner import until
from tests.support.servers import RedisServer

pytestmark = pytest.mark.celery

NAME = "celery@busy"
EARLIER = "the ticket of an earlier question"


@contextmanager
def late_worker(app: Celery) -> Iterator[None]:
    """Reply to each question twice: first to an earlier question, then to this one."""
    ends = threading.Event()

    def on_question(body: Mapping[str, Any], _: Any) -> None:
        where = body["reply_to"]
        for reply, ticket in ("late", EARLIER), ("due", body["ticket"]):
            node.reply({NAME: reply}, where["exchange"], where["routing_key"], ticket)

    with app.connection_for_read() as connection:
        node = app.control.mailbox(connection).Node(NAME, channel=connection.channel())

        def serve() -> None:
            with node.Consumer(callbacks=[on_question], accept=["json"]):
                listens.set()
                while not ends.is_set():
                    try:
                        connection.drain_events(timeout=0.1)
                    except TimeoutError:
                        continue

        listens, thread = threading.Event(), threading.Thread(target=serve)
        thread.start()
        until(listens.is_set, "a worker that listens")
        try:
            yield
        finally:
            ends.set()
            thread.join()


def asked(app: Celery, names: list[str] | None, timeout: float) -> dict[str, Any]:
    replies: dict[str, Any] = {}
    with app.connection_for_write() as connection:
        ask_workers(app, connection, "anything", replies.update, timeout=timeout, names=names)
    return replies


@pytest.mark.parametrize("kind", ["redis", "rabbit"])
def test_late_reply_to_an_earlier_question_is_not_counted(request, redis, kind):
    app = make_app(broker_url=request.getfixturevalue(kind).url, result_backend=redis.url)
    with late_worker(app):
        # Longer than a test may take: the question ends with the reply, not with its timeout.
        assert asked(app, [NAME], timeout=600) == {NAME: "due"}


def test_question_ends_by_its_timeout_if_a_worker_is_missing(redis: RedisServer):
    app = make_app(broker_url=redis.url, result_backend=redis.url)
    with late_worker(app):
        assert asked(app, [NAME, "celery@gone"], timeout=2) == {NAME: "due"}
        assert asked(app, None, timeout=2) == {NAME: "due"}
        assert asked(app, ["celery@gone"], timeout=0.2) == {NAME: "due"}
