"""The publisher for each kind of broker."""

from __future__ import annotations

from typing import Protocol

from celery import Celery

from celeriac.broker.amqp import AmqpPublisher
from celeriac.broker.one_by_one import OneByOnePublisher
from celeriac.broker.redis import RedisPublisher
from celeriac.broker.task_message import MessageFactory, task_message
from celeriac.executor.interfaces import Publisher


class BrokerPublisher(Publisher, Protocol):
    """A publisher with a connection to a broker."""

    def close(self) -> None:
        """Close the connection."""
        ...


def publisher_for(app: Celery, *, message_factory: MessageFactory = task_message) -> BrokerPublisher:
    """Return the publisher for the app's broker. `message_factory` makes the message of each task."""
    match app.connection_for_write().transport.driver_type:
        case "redis":
            return RedisPublisher(app, message_factory=message_factory)
        case "amqp":
            return AmqpPublisher(app, message_factory=message_factory)
    return OneByOnePublisher(app, message_factory=message_factory)
