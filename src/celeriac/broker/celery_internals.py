"""Private and undocumented names of Celery and Kombu that Celeriac needs.

Each function wraps one name. All were checked with Celery 5.5, 5.6 and 5.7 and the Kombu of the same number; where
the versions differ, the docstring says so. `tests/contract/test_celery_internals.py` names each one that a
version lacks. `celeriac.worker.celery_internals` has those that need `celery.worker`: importing that takes too long
for a program that runs no worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

# — Kombu's channel for Redis —


def redis_list_of(channel: Any, queue: str, priority: int) -> str:
    """Return the name of the Redis list with the messages of one queue and priority."""
    name: str = channel._q_for_pri(queue, priority)
    return name


def keeps_delivered(channel: Any) -> bool:
    """Return whether a channel keeps delivered messages in the broker until they are acknowledged: Redis alone."""
    return hasattr(channel, "unacked_key")


def set_requeue_on_close(channel: Any, is_on: bool) -> None:
    """Choose whether the channel puts all unacknowledged messages back when it closes. By default it does."""
    channel.do_restore = is_on


def acknowledge_by_tag(channel: Any, tag: str) -> None:
    """Acknowledge a message that another channel received."""
    channel.qos._remove_from_indices(tag).execute()


def requeue_by_tag(channel: Any, tag: str) -> None:
    """Put a message that another channel received back at the head of its queue."""
    channel.qos.restore_by_tag(tag, leftmost=True)


class RawMessage(NamedTuple):
    """A message as it was in its queue."""

    payload: dict[str, Any]
    exchange: str
    routing_key: str


def keep_unrecorded(channel: Any, keep: Callable[[RawMessage], object], *, when: Callable[[Exception], bool]) -> None:
    """Pass a message that a channel cannot record as delivered to `keep`, if `when` accepts the error: by then it is in
    no queue any more."""
    record = channel.qos.append

    def record_or_keep(message: Any, tag: str) -> None:
        try:
            record(message, tag)
        except Exception as error:
            if when(error):
                info = message.delivery_info
                keep(RawMessage(message._raw, info["exchange"], info["routing_key"]))
            raise

    channel.qos.append = record_or_keep


def put_back_raw(channel: Any, message: RawMessage) -> None:
    """Put a message at the head of its queue."""
    with channel.conn_or_acquire() as client, client.pipeline() as pipeline:
        channel._do_restore_message(*message, pipeline, leftmost=False)
        pipeline.execute()


# — Kombu's channel for RabbitMQ —


def republish(channel: Any, message: Any) -> None:
    """Send a message again, unchanged, that an earlier channel of Kombu's has received."""
    info, properties = message.delivery_info, dict(message.properties)
    named = {name: properties.pop(name, None) for name in ("priority", "content_type", "content_encoding")}
    headers = properties.pop("application_headers", None)
    copy = channel.prepare_message(message.body, headers=headers, properties=properties, **named)
    channel.basic_publish(copy, exchange=info["exchange"], routing_key=info["routing_key"])


# — Kombu's channels —


def forget_declarations(channel: Any) -> None:
    """Make the channel's connection declare each queue and exchange again before it is used next."""
    channel.connection.client.declared_entities.clear()


# — result backends —


def wrap_backend(app: Any, wrap: Callable[[Any], Any]) -> None:
    """Pass each result backend that the app makes through a function. The app makes one for each thread."""
    make_backend = app._get_backend
    app._get_backend = lambda: wrap(make_backend())
    app._local.__dict__.pop("backend", None)  # this thread, and children forked from it, may have one already


def redis_client_of(backend: Any, **parameters: Any) -> Any:
    """Return a new client for the server of a Redis backend, with parameters like those in `backend.connparams`."""
    return backend._create_client(**parameters)


def result_meta(backend: Any, result: Any, state: str, request: Any) -> dict[str, Any]:
    """Return the table that Celery stores as a result in a key-value store."""
    meta: dict[str, Any] = backend._get_result_meta(result=result, state=state, traceback=None, request=request)
    return meta


def decode_stored_result(backend: Any, value: Any) -> Any:
    """Decode the result column of a database. Only for Celery 5.7: before, the column's type did this."""
    return backend._decode_stored_result(value)


def set_result_decoder(backend: Any, decode: Callable[[Any], Any], pickler: Any) -> None:
    """Replace the decoder of the result column of a database: `pickler` before Celery 5.7, `decode` since."""
    column = backend.task_cls.__table__.c.result.type
    if hasattr(column, "pickler"):
        column.pickler = pickler
    else:
        backend._decode_stored_result = decode


def wrap_result_calls(
    backend: Any, store: Callable[[Callable[..., Any]], Any], read: Callable[[Callable[..., Any]], Any]
) -> None:
    """Replace the methods by which a backend stores and reads one result, and turn Celery's own retries off.

    A backend of another kind may lack them.
    """
    for name, wrap in (("_store_result", store), ("_get_task_meta_for", read)):
        if (method := getattr(backend, name, None)) is not None:
            setattr(backend, name, wrap(method))
            backend.always_retry = False


def drop_idle_connections(backend: Any) -> None:
    """Close the connections of a backend that no call uses."""
    if (manager := getattr(backend, "session_manager", None)) is not None:
        for engine in list(manager._engines.values()):
            engine.dispose()
    elif (client := backend.__dict__.get("client")) is not None:
        client.connection_pool.disconnect(inuse_connections=False)


def keep_connections(session_manager: Any) -> None:
    """Make the session manager of a database backend keep its connections. By default it keeps them only after a
    fork, and Celery 5.7 drops the connections of all threads after an error in one thread."""
    session_manager.forked = True
    session_manager.invalidate = lambda _: None
