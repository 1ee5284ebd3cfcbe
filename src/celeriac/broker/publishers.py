"""From the executor to the broker: one publisher for each kind of broker.

call       which Celery task a `Task` becomes
message    Celery writes it; of each kind a blank, to be filled in
form       bytes with holes: what a publisher makes of a blank
redis      many messages in a few large writes
amqp       many messages, then all of their confirms; amqp_frames, what RabbitMQ reads
one_by_one for every other broker
connection, outage: one connection, deadlines, and what happens while the broker is away
revoker    calls tasks back
"""

from __future__ import annotations

from typing import Protocol

from celery import Celery

from celeriac.broker.task_message import MessageFactory, task_message
from celeriac.executor.interfaces import Publisher


class BrokerPublisher(Publisher, Protocol):
    """A publisher with a connection behind it."""

    def close(self) -> None:
        """Let go of the broker."""
        ...


def publisher_for(app: Celery, *, message_factory: MessageFactory = task_message) -> BrokerPublisher:
    """The publisher for the app's broker."""
    match app.connection_for_write().transport.driver_type:
        case "redis":
            from celeriac.broker.redis import RedisPublisher

            return RedisPublisher(app, message_factory=message_factory)
        case "amqp":
            from celeriac.broker.amqp import AmqpPublisher

            return AmqpPublisher(app, message_factory=message_factory)
    from celeriac.broker.one_by_one import OneByOnePublisher

    return OneByOnePublisher(app, message_factory=message_factory)
