"""On Redis, acknowledge a message over a newer connection than the one that delivered it.

connection lost ─► running commands go on; their messages stay where Kombu keeps delivered messages
                └─► messages whose tasks have not started are put back
connected again ─► the messages of commands that ended meanwhile are acknowledged over the new connection, and so are
                   those of commands that end later

Without this module, Celery and Kombu never acknowledge a message after its connection is lost. Its task runs a second
time: after the visibility timeout, or at once, beside the first run, if closing the connection puts the message back.
RabbitMQ puts such messages back by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from celery import bootsteps
from celery.worker.consumer.tasks import Tasks
from celery.worker.request import Request

from celeriac.broker.celery_internals import acknowledge_by_tag, keeps_delivered, requeue_by_tag, set_requeue_on_close
from celeriac.worker.celery_internals import active_requests, reserved_requests, restore_prefetch_count, worker_of
from celeriac.worker.log import logger


class Acks:
    """The acknowledgements that the broker has not received yet.

    All methods but `answer` are for the thread of the worker's event loop.
    """

    def __init__(self) -> None:
        self._channel: Any = None
        self._errors: tuple[type[Exception], ...] = ()
        self._deferred: dict[str, bool] = {}
        """For each delivery tag, whether the message is put back. Otherwise it is acknowledged."""

        self._restore_prefetch: Callable[[], object]
        self.call_soon: Callable[..., object]
        """Schedules a call in the event loop, from any thread."""

    def begin(self, channel: Any, errors: tuple[type[Exception], ...], restore_prefetch: Callable[[], object]) -> None:
        """Take up a new connection, and send the deferred acknowledgements over it.

        `errors` are the exceptions of a lost connection. After a reconnection, Celery prefetches one message less for
        each task that was running. `restore_prefetch` is called when such a task has ended.
        """
        set_requeue_on_close(channel, False)  # else a closed channel puts running tasks back
        self._channel, self._errors, self._restore_prefetch = channel, errors, restore_prefetch
        for tag, put_back in list(self._deferred.items()):
            self._send(tag, put_back)
            del self._deferred[tag]

    def lost(self) -> None:
        """Record the loss of the connection."""
        self._channel = None

    def end(self) -> None:
        """Prepare an orderly end: let the channel put unacknowledged messages back when it closes."""
        if self._channel is not None:
            set_requeue_on_close(self._channel, True)

    def supports(self, channel: Any) -> bool:
        """Return whether messages of a channel can be acknowledged over another one."""
        return keeps_delivered(channel)

    def answer(self, message: Any, *, put_back: bool) -> None:
        """Acknowledge a message, or put it back, over the current connection or the next one. Safe in any thread."""
        self.call_soon(self._answer, message, put_back)

    def defer(self, tag: str, *, put_back: bool) -> None:
        """Acknowledge a message, or put it back, over the next connection."""
        self._deferred[tag] = put_back

    def _answer(self, message: Any, put_back: bool) -> None:
        tag = message.delivery_tag
        try:
            if self._channel is None:
                self.defer(tag, put_back=put_back)
            elif message.channel is not self._channel:
                self._send(tag, put_back)
            elif put_back:
                message.requeue()  # so that Kombu's count of unacknowledged messages stays right
            else:
                message.ack()
        except self._errors as error:
            logger.debug("an acknowledgement is deferred: %s", error)
            self.defer(tag, put_back=put_back)

    def _send(self, tag: str, put_back: bool) -> None:
        if put_back:
            requeue_by_tag(self._channel, tag)
        else:
            acknowledge_by_tag(self._channel, tag)
            self._restore_prefetch()


class ReconnectSafeRequest(Request):  # type: ignore[misc]
    """A Celery request that can be acknowledged after its connection was lost."""

    acks: Acks
    acknowledged: bool

    def acknowledge(self) -> None:
        if not self.acks.supports(self.message.channel):
            super().acknowledge()
        elif not self.acknowledged:
            self.acknowledged = True
            self.acks.answer(self.message, put_back=False)

    def reject(self, requeue: bool = False) -> None:
        if not self.acks.supports(self.message.channel):
            super().reject(requeue=requeue)
        elif not self.acknowledged:
            self.acknowledged = True
            self.acks.answer(self.message, put_back=requeue)
            self.send_event("task-rejected", requeue=requeue)


def request_class(acks: Acks) -> type[ReconnectSafeRequest]:
    """Return a request class that is bound to `acks`. Celery makes the requests, and passes only its own arguments."""
    return type("ReconnectSafeRequest", (ReconnectSafeRequest,), {"acks": acks})


class AckStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tells `Acks` of each new connection, and of the orderly end."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        acks, channel = worker_of(consumer).parts.acks, consumer.task_consumer.channel
        acks.call_soon = consumer.call_soon
        if acks.supports(channel):
            errors = (*consumer.connection_errors, *consumer.channel_errors)
            acks.begin(channel, errors, partial(restore_prefetch_count, consumer))

    def shutdown(self, consumer: Any) -> None:
        worker_of(consumer).parts.acks.end()


def put_back_unstarted(acks: Acks) -> None:
    """Put back the messages whose tasks have not started. Celery drops them when a connection is lost."""
    for request in set(reserved_requests()) - set(active_requests()):
        if acks.supports(request.message.channel):
            acks.defer(request.message.delivery_tag, put_back=True)
