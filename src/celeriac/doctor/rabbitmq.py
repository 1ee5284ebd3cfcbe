"""Checks of a RabbitMQ as broker. No queue is created: its arguments could be the wrong ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import uuid4

from amqp import Message
from amqp.exceptions import AccessRefused, NotFound
from celery import Celery

from celeriac.backend.kind import BackendKind, backend_kind
from celeriac.broker.app import transport_options
from celeriac.broker.broker_list import broker_list_of, connect_to_any
from celeriac.cluster.preflight import check_broker
from celeriac.doctor.check import Check, Problem, Subject, warning
from celeriac.doctor.server import LOGIN_CHECK, REACHABLE, WRITABLE, ServerFacts, attempt, reporting
from celeriac.errors import BrokerBlocked, BrokerUnavailable, QueueRefused
from celeriac.server_errors import is_server_error

KNOWS_LONG_CONSUMERS = (3, 11, 15)
"""The first version in which a consumer may ask for a longer `consumer_timeout`."""


@dataclass(slots=True, kw_only=True)
class RabbitFacts(ServerFacts):
    """The facts of a RabbitMQ."""

    version: tuple[int, ...] = ()
    has_claims: bool = True
    """Whether the result backend holds claims."""

    IDS: ClassVar[Collection[str]] = ("rabbitmq-queues", "rights", "rabbitmq-alarm")


# — decisions —


def consumer_timeout_problem(facts: RabbitFacts) -> Iterator[Problem]:
    """Yield a problem if the server delivers the message of a long command again, and no claim stops that one."""
    if not facts.has_claims and (0,) < facts.version < KNOWS_LONG_CONSUMERS:
        text = "a command that takes longer than consumer_timeout (30 minutes by default) runs twice"
        remedy = "use a result backend that holds claims, upgrade RabbitMQ to 3.11.15, or raise consumer_timeout"
        yield warning(text, remedy)


def version_of(properties: Any) -> tuple[int, ...]:
    """Return the version in the properties of a server; () if there is none."""
    text = properties.get("version", "") if isinstance(properties, dict) else ""
    return tuple(int(number) for number in re.findall(r"\d+", str(text))[:3])


# — facts —


def read_rabbit(app: Celery, queues: Collection[str], timeout: float) -> RabbitFacts:
    """Use the queues that exist as a run and a worker do."""
    facts = RabbitFacts(has_claims=backend_kind(app) is not BackendKind.OTHER)
    existing: list[str] = []
    facts.error = attempt(lambda: existing.extend(look_around(app, queues, timeout, facts)))
    if facts.error is None and existing:
        facts.error = attempt(lambda: check_broker(app, existing, timeout))
    return facts


def look_around(app: Celery, queues: Collection[str], timeout: float, facts: RabbitFacts) -> list[str]:
    """Return the queues that exist. Raise the error of the server, or what it refuses."""
    blocked: list[object] = []
    options = {**transport_options("amqp", timeout), "confirm_publish": False, "on_blocked": blocked.append}
    try:
        connection, _ = connect_to_any(app, timeout=timeout, transport_options=options)
    except Exception as error:
        if not is_server_error(error):
            raise
        raise BrokerUnavailable(str(broker_list_of(app)), error) from None
    try:
        facts.version = version_of(connection.connection.server_properties)
        existing = [queue for queue in queues if may_read(connection, queue)]
        for queue in set(queues) - set(existing):
            check_creation(connection, queue)
        check_alarm(connection, blocked)
    finally:
        connection.collect()  # a server with an alarm would not answer a farewell
    return existing


def may_read(connection: Any, queue: str) -> bool:
    """Return whether a queue exists. Raise `QueueRefused` if it cannot be read."""
    with connection.channel() as channel:  # a channel of its own: a refusal closes it
        try:
            _, messages, _ = channel.queue_declare(queue, passive=True)
            if not messages and (message := channel.basic_get(queue)) is not None:  # it has just come
                channel.basic_reject(message.delivery_tag, requeue=True)
        except NotFound:
            return False
        except AccessRefused as error:
            raise QueueRefused.from_reply(error, queue) from None
    return True


def check_creation(connection: Any, queue: str) -> None:
    """Raise `QueueRefused` if this user may not create a queue of such a name."""
    with connection.channel() as channel:
        try:
            name = f"{queue}.celeriac-doctor-{uuid4()}"
            channel.queue_declare(name, exclusive=True, auto_delete=True)
            channel.queue_delete(name)
        except AccessRefused as error:
            raise QueueRefused.from_reply(error, queue) from None


def check_alarm(connection: Any, blocked: list[object]) -> None:
    """Raise `BrokerBlocked` if the server blocks publishers. It says so after a message, which no queue takes."""
    channel = connection.channel()
    try:
        channel.basic_publish(Message(b""), exchange="", routing_key=f"celeriac-{uuid4()}")
        if not blocked:
            channel.basic_qos(0, 1, False)  # a server that blocks reads this later
    except OSError:
        if not blocked:
            raise
    except AccessRefused as error:
        raise QueueRefused.from_reply(error, "the default exchange") from None
    if blocked:
        raise BrokerBlocked


CHECKS: tuple[Check[Any], ...] = (
    REACHABLE,
    LOGIN_CHECK,
    Check(
        id="rights",
        sound="this user has the rights that are needed",
        risk="Tasks cannot be sent, or their results cannot be stored.",
        look=reporting("rights"),
    ),
    Check(
        id="rabbitmq-queues",
        sound="the queues that exist have the arguments of these settings",
        risk="Executors and workers cannot use a queue.",
        look=reporting("rabbitmq-queues"),
    ),
    Check(
        id="rabbitmq-alarm",
        sound="no alarm blocks publishers",
        risk="Tasks wait until memory or disk space is free.",
        look=reporting("rabbitmq-alarm"),
    ),
    Check(
        id="rabbitmq-consumer-timeout",
        sound="long commands keep their messages",
        risk="A command that takes longer runs twice.",
        look=consumer_timeout_problem,
    ),
    WRITABLE,
)


def rabbitmq_subject(name: str, app: Celery, queues: Collection[str], timeout: float) -> Subject[RabbitFacts]:
    return Subject(name, lambda: read_rabbit(app, queues, timeout), CHECKS)
