"""On Redis a message is acknowledged over whatever connection there is, not only the one it came by.

connection lost ─► what runs goes on; its messages stay where Kombu keeps the delivered ones
               └─► what had not begun is put back
connected again ─► what ended meanwhile is acknowledged; what ends later is, over the new connection

Celery and Kombu leave a message whose connection is gone: its task runs again when the visibility timeout is over, or
at once, beside the first run, when the connection's end puts it back. RabbitMQ puts such messages back by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from celery import bootsteps
from celery.worker import state as worker_state
from celery.worker.consumer.tasks import Tasks
from celery.worker.request import Request

from celeriac.worker.log import logger


class Acks:
    """What is owed to the broker. All but `answer` is for the worker's event loop alone."""

    def __init__(self) -> None:
        self._channel: Any = None
        self._errors: tuple[type[Exception], ...] = ()
        self._owed: dict[str, bool] = {}
        """Delivery tags, and whether their messages are to be put back."""

        self._take_one_more: Callable[[], object]
        self.call_soon: Callable[..., object]
        """Has the event loop call something."""

    def begin(self, channel: Any, errors: tuple[type[Exception], ...], take_one_more: Callable[[], object]) -> None:
        """A connection, and the errors that say it is gone. Pays what is owed.

        Celery prefetches less over it, by as many as ran when the last one was lost. `take_one_more` is called for
        each of those that has ended.
        """
        channel.do_restore = False  # else its end would put back what still runs
        self._channel, self._errors, self._take_one_more = channel, errors, take_one_more
        for tag, put_back in list(self._owed.items()):
            self._send(tag, put_back)
            del self._owed[tag]

    def lost(self) -> None:
        self._channel = None

    def end(self) -> None:
        """Of an orderly end: what is still here, Kombu may put back."""
        if self._channel is not None:
            self._channel.do_restore = True

    def supports(self, channel: Any) -> bool:
        return hasattr(channel, "unacked_key")

    def answer(self, message: Any, *, put_back: bool) -> None:
        """Acknowledge a message, or put it back: from any thread, over the connection there is then, or the next."""
        self.call_soon(self._answer, message, put_back)

    def defer(self, tag: str, *, put_back: bool) -> None:
        """To be paid over the next connection."""
        self._owed[tag] = put_back

    def _answer(self, message: Any, put_back: bool) -> None:
        tag = message.delivery_tag
        try:
            if self._channel is None:
                self.defer(tag, put_back=put_back)
            elif message.channel is not self._channel:
                self._send(tag, put_back)
            elif put_back:
                message.requeue()  # so that Kombu counts what is out
            else:
                message.ack()
        except self._errors as error:
            logger.debug("a message is answered later: %s", error)
            self.defer(tag, put_back=put_back)

    def _send(self, tag: str, put_back: bool) -> None:
        if put_back:
            self._channel.qos.restore_by_tag(tag, leftmost=True)
        else:
            self._channel.qos._remove_from_indices(tag).execute()
            self._take_one_more()


class ReconnectSafeRequest(Request):  # type: ignore[misc]
    """Celery's, but it outlives the connection that its message came by."""

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
    return type("LastingRequest", (ReconnectSafeRequest,), {"acks": acks})


class AckStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tells `Acks` of each new connection, and of the orderly end."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        acks, channel = consumer.controller.acks, consumer.task_consumer.channel
        acks.call_soon = consumer.call_soon
        if acks.supports(channel):
            errors = (*consumer.connection_errors, *consumer.channel_errors)
            acks.begin(channel, errors, partial(consumer._restore_prefetch_count_after_connection_restart, None))

    def shutdown(self, consumer: Any) -> None:
        consumer.controller.acks.end()


def put_back_what_has_not_begun(acks: Acks) -> None:
    """Celery forgets it when a connection is lost."""
    for request in set(worker_state.reserved_requests) - set(worker_state.active_requests):
        if acks.supports(request.message.channel):
            acks.defer(request.message.delivery_tag, put_back=True)
