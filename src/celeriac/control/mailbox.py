"""The mailbox of all executors on a broker. It is a mailbox of Kombu, like the one that Celery uses to control workers.

request ─► fanout exchange ─► each executor's own queue
replies ─► direct exchange ─► the caller's own queue, with the caller's ticket
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from celery import Celery
from kombu import Exchange, Producer
from kombu.exceptions import InconsistencyError
from kombu.pidbox import Mailbox

NAMESPACE = "celeriac-executors"
QUEUE_EXPIRES = 10.0  # seconds until the broker deletes the queue of a process that has ended
METHOD = "ask"
ECHO = "echo"


def mailbox_on(connection: Any) -> Any:
    """Return the executors' mailbox on this connection."""
    return Mailbox(
        NAMESPACE,
        type="fanout",
        accept=["json"],
        serializer="json",
        queue_expires=QUEUE_EXPIRES,
        reply_queue_expires=QUEUE_EXPIRES,
    )(connection)


def has_mailboxes(app: Celery) -> bool:
    """Return whether the app's broker can deliver one message to many queues."""
    return "fanout" in app.connection_for_write().transport.implements.exchange_type


def broadcast(mailbox: Any, channel: Any, message: Mapping[str, Any]) -> None:
    """Send a message to every executor. Try once: Kombu's own method retries for as long as the broker is down."""
    producer = Producer(channel, exchange=mailbox.exchange, serializer="json", auto_declare=False)
    producer.publish(message, exchange=mailbox.exchange.name, declare=[mailbox.exchange], headers={"clock": 0})


def send_reply(channel: Any, message: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
    """Send a reply to the sender of `message`. Do nothing if the sender's queue no longer exists."""
    exchange = Exchange(message["reply_to"]["exchange"], type="direct", durable=False, delivery_mode="transient")
    producer = Producer(channel, serializer="json", auto_declare=False)
    with contextlib.suppress(InconsistencyError):
        producer.publish(
            reply,
            exchange=exchange.name,
            routing_key=message["reply_to"]["routing_key"],
            declare=[exchange],
            headers={"ticket": message["ticket"], "clock": 0},
        )


def is_answerable(message: Any) -> bool:
    """Return whether the message names a queue for replies. Any client of the broker may send messages here."""
    match message:
        case {"reply_to": {"exchange": str(), "routing_key": str()}, "ticket": str()}:
            return True
    return False
