"""The table of an app's queues, with the arguments that RabbitMQ needs, and what RabbitMQ counts in a queue.

Executors and workers must declare a queue with the same arguments, or RabbitMQ refuses the second declaration. The
arguments of a consumer are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from amqp.exceptions import NotFound
from celery import Celery
from celery.app.amqp import Queues

QUEUE_TYPES = ("classic", "quorum")
QUORUM = {"x-queue-type": "quorum"}
CONSUMER_TIMEOUT = 2**31 - 1  # ms, 24 days: the largest number that every version of RabbitMQ accepts
LONG_COMMANDS = {"x-consumer-timeout": CONSUMER_TIMEOUT}
"""The argument of a consumer whose commands take long. RabbitMQ knows it since 3.11.15; older versions ignore it."""


class TypedQueues(Queues):  # type: ignore[misc]
    """Celery's table of queues. It gives its type to each queue that is known by its name alone.

    Celery 5.6 does that for most of them, and Celery 5.5 for none.
    """

    def __init__(
        self, *args: Any, missing_type: str, consumer_arguments: Mapping[str, Any] | None, **options: Any
    ) -> None:
        self._missing_type, self._consumer_arguments = missing_type, consumer_arguments
        super().__init__(*args, **options)

    def __setitem__(self, name: str, queue: Any) -> None:
        if self._consumer_arguments is not None:
            queue.consumer_arguments = {**self._consumer_arguments, **(queue.consumer_arguments or {})}
        super().__setitem__(name, queue)

    def new_missing(self, name: str) -> Any:
        queue = super().new_missing(name)
        if self._missing_type == "quorum":
            queue.queue_arguments = {**QUORUM, **(queue.queue_arguments or {})}
        return queue

    def add_compat(self, name: str, **options: Any) -> Any:
        if self._missing_type == "quorum":
            options["queue_arguments"] = {**QUORUM, **(options.get("queue_arguments") or {})}
        return super().add_compat(name, **options)


def set_up_queues(app: Celery, *, consumer_arguments: Mapping[str, Any] | None = None) -> None:
    """Make the app use a `TypedQueues`. Call it before the app uses any queue."""
    missing_type = app.conf.get("task_create_missing_queue_type") or "classic"
    app.amqp.queues_cls = partial(TypedQueues, missing_type=missing_type, consumer_arguments=consumer_arguments)


def is_quorum(settings: Mapping[str, Any]) -> bool:
    """Return whether Celery's settings ask for quorum queues."""
    return settings.get("task_default_queue_type") == "quorum"


def queue_counts(connection: Any, queue: str) -> tuple[int, int]:
    """Return the number of messages that wait in a queue, and of its consumers; zeros if there is no such queue."""
    with connection.channel() as channel:  # a separate channel: RabbitMQ closes it if there is no such queue
        try:
            _, messages, consumers = channel.queue_declare(queue, passive=True)
        except NotFound:
            return 0, 0
    return messages, consumers
