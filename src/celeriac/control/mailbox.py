"""The mailbox of all executors on a broker: Kombu's, the same kind by which Celery's workers are controlled.

request ─► fanout exchange ─► each executor's own queue
answers ─► direct exchange ─► the caller's own queue, by its ticket
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
QUEUE_EXPIRES = 10.0  # seconds that the queue of a process outlives it
METHOD = "ask"
ECHO = "echo"


def mailbox_on(connection: Any) -> Any:
    return Mailbox(
        NAMESPACE,
        type="fanout",
        accept=["json"],
        serializer="json",
        queue_expires=QUEUE_EXPIRES,
        reply_queue_expires=QUEUE_EXPIRES,
    )(connection)


def has_mailboxes(app: Celery) -> bool:
    """Whether its broker can carry one message to many."""
    return "fanout" in app.connection_for_write().transport.implements.exchange_type


def send(mailbox: Any, channel: Any, message: Mapping[str, Any]) -> None:
    """To every executor. One try: Kombu's own would go on for as long as the broker is away."""
    producer = Producer(channel, exchange=mailbox.exchange, serializer="json", auto_declare=False)
    producer.publish(message, exchange=mailbox.exchange.name, declare=[mailbox.exchange], headers={"clock": 0})


def reply(channel: Any, message: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """To whoever sent that message, if he still listens."""
    exchange = Exchange(message["reply_to"]["exchange"], type="direct", durable=False, delivery_mode="transient")
    producer = Producer(channel, serializer="json", auto_declare=False)
    with contextlib.suppress(InconsistencyError):
        producer.publish(
            answer,
            exchange=exchange.name,
            routing_key=message["reply_to"]["routing_key"],
            declare=[exchange],
            headers={"ticket": message["ticket"], "clock": 0},
        )


def is_answerable(message: Any) -> bool:
    """Whether it says where an answer should go: anybody may write to a broker."""
    match message:
        case {"reply_to": {"exchange": str(), "routing_key": str()}, "ticket": str()}:
            return True
    return False
