"""Queues are added to a running worker, and removed, by remote control."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.consumer import Consumer

from celeriac.worker.pause import WorkerPause
from celeriac.worker.served_queues import MAX_QUEUE_NAME, MAX_SERVED_QUEUES, ServedQueues


class OneConsumer(SimpleNamespace):
    """The part of Celery's consumer that changes queues, on Kombu's transport in memory."""

    def __init__(self, app: Celery, connection: Any) -> None:
        shutdown = SimpleNamespace(is_shutting_down=False)
        super().__init__(app=app, connection=connection, shutdown=shutdown)
        parts = SimpleNamespace(shutdown=shutdown, pause=WorkerPause(), lease_manager=None)
        self.controller = SimpleNamespace(parts=parts, running=2)
        self.add_task_queue = MethodType(Consumer.add_task_queue, self)
        self.cancel_task_queue = MethodType(Consumer.cancel_task_queue, self)
        self.connect()

    def connect(self) -> None:
        """Consume from the queues, as after each connection."""
        self.task_consumer = self.app.amqp.TaskConsumer(self.connection)
        self.task_consumer.consume()

    @property
    def names(self) -> set[str]:
        return {queue.name for queue in self.task_consumer.queues if self.task_consumer.consuming_from(queue)}


@pytest.fixture
def consumer() -> Iterator[OneConsumer]:
    with closing(Celery("app", broker="memory://", set_as_current=False)) as app:
        app.amqp.queues.select(["a", "b"])
        with app.connection_for_read() as connection:
            yield OneConsumer(app, connection)


def test_changes_outlive_the_connection(consumer: OneConsumer) -> None:
    queues = ServedQueues(consumer)
    assert queues.add_consumer(None, "c") == {"ok": "add consumer c"}
    assert queues.cancel_consumer(None, "a") == {"ok": "no longer consuming from a"}
    assert queues.cancel_consumer(None, "b") == {"ok": "no longer consuming from b"}
    assert queues.add_consumer(None, "b") == {"ok": "add consumer b"}
    assert consumer.names == {"b", "c"}
    consumer.connect()
    assert consumer.names == {"b", "c"}
    assert set(consumer.app.amqp.queues.consume_from) == {"b", "c"}


def test_repeated_changes_change_nothing(consumer: OneConsumer) -> None:
    queues = ServedQueues(consumer)
    assert queues.add_consumer(None, "a") == {"ok": "already consuming from a"}
    assert queues.cancel_consumer(None, "z") == {"ok": "was not consuming from z"}
    assert consumer.names == {"a", "b"}


@pytest.mark.parametrize("name", ["", "a\nb", "x" * (MAX_QUEUE_NAME + 1), "\udc80", 5, None])
def test_what_is_no_name_is_refused(consumer: OneConsumer, name: Any) -> None:
    reply = ServedQueues(consumer).add_consumer(None, name)
    assert "is not the name of a queue; give 1 to 255 printable characters" in reply["error"]
    assert consumer.names == {"a", "b"}


def test_draining_worker_takes_no_more_queues(consumer: OneConsumer) -> None:
    consumer.shutdown.is_shutting_down = True
    assert "is draining" in ServedQueues(consumer).add_consumer(None, "c")["error"]


def test_queues_are_limited_and_unknown_ones_may_be_forbidden(consumer: OneConsumer) -> None:
    queues = consumer.app.amqp.queues
    queues.create_missing = False
    assert "is not in task_queues" in ServedQueues(consumer).add_consumer(None, "c")["error"]
    queues.create_missing = True
    queues.select([f"q{number}" for number in range(MAX_SERVED_QUEUES)])
    assert "serves 1000 queues already" in ServedQueues(consumer).add_consumer(None, "c")["error"]


def test_pause_outlives_the_connection_and_ends_with_the_same_queues(consumer: OneConsumer) -> None:
    queues, pause = ServedQueues(consumer), consumer.controller.parts.pause
    assert queues.pause(None, "someone") == {"ok": "paused", "changed": True, "running": 2}
    assert (consumer.names, pause.is_on, pause.asked_by, pause.queues) == (set(), True, "someone", {"a", "b"})
    assert queues.pause(None, "another") == {"ok": "paused", "changed": False, "running": 2}
    consumer.connect()
    queues = ServedQueues(consumer)  # as Celery makes its handlers anew for each connection
    assert (consumer.names, pause.asked_by) == (set(), "someone")
    assert queues.resume(None, 5) == {"ok": "resumed", "changed": True, "running": 2}
    assert (consumer.names, pause.is_on, pause.asked_by) == ({"a", "b"}, False, None)
    assert queues.resume(None) == {"ok": "resumed", "changed": False, "running": 2}
    consumer.connect()
    assert consumer.names == {"a", "b"}


def test_queues_that_change_during_a_pause_are_served_after_it(consumer: OneConsumer) -> None:
    queues = ServedQueues(consumer)
    queues.pause(None)
    assert queues.add_consumer(None, "c") == {"ok": "add consumer c"}
    assert queues.add_consumer(None, "b") == {"ok": "already consuming from b"}
    assert queues.cancel_consumer(None, "a") == {"ok": "no longer consuming from a"}
    assert queues.cancel_consumer(None, "a") == {"ok": "was not consuming from a"}
    assert consumer.names == set()
    queues.resume(None)
    assert consumer.names == {"b", "c"}


def test_draining_worker_is_not_paused_and_a_paused_one_is_not_resumed_by_a_drain(consumer: OneConsumer) -> None:
    queues = ServedQueues(consumer)
    queues.pause(None)
    consumer.shutdown.is_shutting_down = True
    queues.resume(None)
    assert consumer.names == set()
    assert queues.pause(None) == {"error": "the worker is draining"}
