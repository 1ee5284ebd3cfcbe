"""Check that a broker and a result backend can be used, before the first task is queued.

queues ─► broker:         declare them, and begin to publish
       └► result backend: read, delete and follow results; read leases; run a script; write

A password or a right that is missing would otherwise count as an outage, which every part of an executor waits for.
Nothing that others see is written.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from functools import partial
from typing import Any
from uuid import uuid4

from amqp import Message
from amqp.exceptions import ChannelError
from celery import Celery

from celeriac.backend.claims import claims_for
from celeriac.backend.results.open import store_for
from celeriac.backend.results.redis import RedisChannel, RedisStore
from celeriac.broker.broker_list import broker_list_of
from celeriac.broker.deadline_thread import DeadlineThread
from celeriac.broker.message import MessageBuilder, Published
from celeriac.broker.redis_keys import BrokerKeys
from celeriac.broker.session import BrokerSession
from celeriac.broker.task_message import task_message
from celeriac.config.masking import masked
from celeriac.errors import BackendUnavailable, BrokerUnavailable, QueueRefused
from celeriac.server_errors import ServerProblem, is_server_error, problem_of
from celeriac.task.task import Task

OPERATIONS = 5  # the timeouts of so many operations pass before the servers count as silent
IDS = ("celeriac-preflight-1", "celeriac-preflight-2")
"""Ids that no task has: two, because a Redis Cluster refuses requests for two keys and not for one."""

NO_HEARTBEATS = -1


def check_servers(app: Celery, queues: Collection[str], *, timeout: float) -> None:
    """Check that tasks of these queues can be published, and their results and claims be read and written.

    `timeout`, in seconds, bounds one operation. Raise `BrokerUnavailable`, `BackendUnavailable` or `QueueRefused` for
    the first request that fails.
    """
    silent = TimeoutError(f"no reply in {OPERATIONS * timeout:g} s")
    with closing(DeadlineThread[None]("celeriac-preflight")) as thread:
        try:
            thread.call(partial(check_broker, app, queues, timeout), OPERATIONS * timeout)
        except TimeoutError:
            raise BrokerUnavailable(str(broker_list_of(app)), silent) from None
        try:
            thread.call(partial(check_backend, app, timeout), OPERATIONS * timeout)
        except TimeoutError:
            raise BackendUnavailable(silent, backend=backend_name(app)) from None


def check_broker(app: Celery, queues: Collection[str], timeout: float) -> None:
    with BrokerSession(app, timeout=timeout).open() as connection:
        builder = MessageBuilder(app, connection.default_channel, priority_of=lambda urgency: urgency)
        for queue in sorted(queues):
            try:
                task = Task(key=IDS[0], command="true", queue=queue)
                for published in builder.build(task_message(task), IDS[0]):  # this declares the queue
                    check_publish(connection, queue, published)
            except ChannelError as error:
                if problem_of(error) is not ServerProblem.REFUSED:
                    raise
                raise QueueRefused.from_reply(error, queue) from None


def check_publish(connection: Any, queue: str, published: Published) -> None:
    """Begin to publish a message, so that the broker checks all that it checks for a real one."""
    channel = connection.default_channel
    match connection.transport.driver_type:
        case "redis":
            keys = BrokerKeys(channel)
            with keys.client() as client, client.pipeline(transaction=False) as pipeline:
                # Redis checks each command of a transaction when it is queued. DISCARD executes none of them.
                pipeline.execute_command("MULTI")
                pipeline.execute_command("LPUSH", next(keys.waiting(queue)), "")
                pipeline.execute_command("DISCARD")
                pipeline.execute()
        case "amqp":
            # No queue has this routing key: RabbitMQ checks the rights, and drops the message.
            channel.basic_publish(Message(b""), exchange=published.exchange, routing_key=f"celeriac-{uuid4()}")


def check_backend(app: Celery, timeout: float) -> None:
    try:
        if (store := store_for(app, timeout=timeout)) is not None:
            with closing(store):
                store.fetch(IDS)
                store.delete(IDS)
            if isinstance(store, RedisStore):
                with closing(RedisChannel(app, timeout).listen()) as changes:  # type: ignore[type-var]
                    next(changes)
        if (claims := claims_for(app, timeout=timeout)) is not None:
            with closing(claims):
                claims.leases()
                claims.read(IDS)
                claims.declare_dead(IDS[0], NO_HEARTBEATS)  # there is no such worker: only the script runs
                claims.check_writable()
    except Exception as error:
        if not is_server_error(error):
            raise
        raise BackendUnavailable(error, backend=backend_name(app)) from None


def backend_name(app: Celery) -> str:
    return f"the result backend {masked(app.conf.result_backend)}"
