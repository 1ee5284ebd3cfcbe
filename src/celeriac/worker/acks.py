"""Acknowledge messages until the broker takes the acknowledgement; on Redis, also over a newer connection.

connection lost ─► running commands go on; their messages stay where Kombu keeps delivered messages
                └─► messages whose tasks have not started are put back
connected again ─► the messages of commands that ended meanwhile are acknowledged over the new connection, and so are
                   those of commands that end later
refused         ─► the acknowledgement is kept, and sent again every second and over each new connection

Without this module, Celery and Kombu never acknowledge a message after its connection is lost, or after the first
refusal. Its task runs a second time: after the visibility timeout, or at once, beside the first run, if closing the
connection puts the message back. RabbitMQ puts such messages back by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import bootsteps
from celery.exceptions import WorkerLostError
from celery.worker.consumer.tasks import Tasks
from celery.worker.request import Request

from celeriac.broker.celery_internals import (
    RawMessage,
    acknowledge_by_tag,
    keep_unrecorded,
    keeps_delivered,
    put_back_raw,
    requeue_by_tag,
    set_requeue_on_close,
)
from celeriac.server_errors import is_refusal, problem_of
from celeriac.surviving_loop import Survivor
from celeriac.worker.celery_internals import (
    active_requests,
    reserved_requests,
    restore_prefetch_count,
    uses_quorum_queues,
    worker_of,
)
from celeriac.worker.log import logger
from celeriac.worker.measures import WorkerMeasures, error_of
from celeriac.worker.prefetch import Prefetch


@dataclass(frozen=True, slots=True)
class Answer:
    """An acknowledgement that the broker has not taken yet."""

    tag: str
    put_back: bool
    """Whether the message is put back. Otherwise it is acknowledged."""

    message: Any = None
    """The message; None if only its delivery tag is known."""


class Acks:
    """The acknowledgements that the broker has not taken yet.

    All methods but `answer`, `retry` and `is_waiting` are for the thread of the worker's event loop.
    """

    def __init__(self) -> None:
        self.prefetch = Prefetch()
        self._channel: Any = None
        self._new: deque[Answer] = deque()
        self._waiting: dict[str, Answer] = {}
        self._unrecorded: deque[RawMessage] = deque()
        """Messages that Kombu has taken from their queues, and that Redis refused to record as delivered."""

        self._uncounted: set[str] = set()
        """The delivery tags for which Celery prefetches one message less since the last reconnection."""

        self._survivor = Survivor("acknowledgements")
        self._restore_prefetch: Callable[[], object]
        self.call_soon: Callable[..., object]
        """Schedules a call in the event loop, from any thread."""

    @property
    def is_waiting(self) -> bool:
        """Whether an acknowledgement was not taken yet."""
        return bool(self._new or self._waiting)

    def begin(self, channel: Any, restore_prefetch: Callable[[], object]) -> None:
        """Take up a new connection, and send over it what is waiting.

        After a reconnection, Celery prefetches one message less for each task that was running. `restore_prefetch` is
        called when such a task has ended. Raises the error of a broker that refuses a message that was put back.
        """
        set_requeue_on_close(channel, False)  # else a closed channel puts running tasks back
        keep_unrecorded(channel, self._unrecorded.append, when=is_refusal)
        self._channel, self._restore_prefetch = channel, restore_prefetch
        while self._unrecorded:
            put_back_raw(channel, self._unrecorded[0])
            self._unrecorded.popleft()
        self._send_all()

    def lost(self) -> None:
        """Record the loss of the connection."""
        self._channel = None

    def count_running(self) -> None:
        """Record for which tasks Celery prefetches less from now on: for those that run when a connection is lost."""
        self._uncounted = {request.message.delivery_tag for request in active_requests()}

    def end(self) -> None:
        """Prepare an orderly end: let the channel put unacknowledged messages back when it closes."""
        if self._channel is not None:
            set_requeue_on_close(self._channel, True)

    def supports(self, channel: Any) -> bool:
        """Return whether messages of a channel can be acknowledged over another one."""
        return keeps_delivered(channel)

    def answer(self, message: Any, *, put_back: bool) -> None:
        """Acknowledge a message, or put it back, as soon as the broker takes it."""
        self._new.append(Answer(message.delivery_tag, put_back, message))
        self.call_soon(self._send_all)

    def defer(self, tag: str, *, put_back: bool) -> None:
        """Acknowledge a message, or put it back, over the next connection."""
        self._new.append(Answer(tag, put_back))

    def retry(self) -> None:
        """Send again what the broker has not taken."""
        if self.is_waiting:
            self.call_soon(self._send_all)

    def _send_all(self) -> None:
        """Send everything that waits. Raise nothing: Kombu would drop the other calls that wait for its event loop."""
        while self._new:
            answer = self._new.popleft()
            self._waiting[answer.tag] = answer
        for answer in list(self._waiting.values()):
            if self._channel is None:
                return
            try:
                self._send(answer)
            except Exception as error:  # noqa: BLE001 - whatever it is, the slot must become free
                logger.debug("an acknowledgement is sent again: %s", error)
                if problem_of(error) is None:
                    self._survivor.record(error)
            else:
                del self._waiting[answer.tag]

    def _send(self, answer: Answer) -> None:
        message = answer.message
        if message is not None and message.channel is self._channel:  # Kombu counts the messages of a channel
            if answer.put_back:
                message.requeue()
            else:
                message.ack()
            return
        if answer.put_back:
            requeue_by_tag(self._channel, answer.tag)
        else:
            acknowledge_by_tag(self._channel, answer.tag)
        if answer.tag in self._uncounted:
            self._uncounted.discard(answer.tag)
            self._restore_prefetch()


class ReconnectSafeRequest(Request):  # type: ignore[misc]
    """A Celery request that can be acknowledged after its connection was lost, and whatever happens at its end."""

    acks: Acks
    measures: WorkerMeasures
    on_killed: Callable[[Any], object]
    """Called with this request when the child that ran it was killed."""

    acknowledged: bool

    @property
    def is_detached(self) -> bool:
        """Whether RabbitMQ has put the message back, because its connection was lost."""
        channel = self.message.channel
        return not self.acks.supports(channel) and channel.connection is None

    def _forget_message(self, *, put_back: bool = False) -> None:
        if not self.acknowledged:
            self.acknowledged = True
            self.acks.call_soon(self.acks.prefetch.command_ended)
            if put_back:
                self.acks.call_soon(self.acks.prefetch.send_again, self.message)

    def acknowledge(self) -> None:
        if self.is_detached:
            self._forget_message()
        elif not self.acks.supports(self.message.channel):
            super().acknowledge()
        elif not self.acknowledged:
            self.acknowledged = True
            self.acks.answer(self.message, put_back=False)

    def reject(self, requeue: bool = False) -> None:
        if self.is_detached:
            self._forget_message(put_back=requeue)
        elif not self.acks.supports(self.message.channel):
            super().reject(requeue=requeue)
        elif not self.acknowledged:
            self.acknowledged = True
            self.acks.answer(self.message, put_back=requeue)
            self.send_event("task-rejected", requeue=requeue)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        self.measures.started()
        super().on_accepted(pid, time_accepted)

    def __init_subclass__(cls) -> None:
        """Count each success. Celery makes a subclass for each task, with an `on_success` of its own."""
        if (on_success := cls.__dict__.get("on_success")) is not None:
            cls.on_success = counts_success(on_success)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        error = error_of(exc_info)
        self.measures.ended(error, self.time_start)
        if isinstance(error, WorkerLostError):
            self.on_killed(self)
        try:
            return super().on_failure(exc_info, *args, **options)
        except BaseException:  # the executor finds a task that has ended without a result
            self.acknowledge()
            raise


def counts_success(on_success: Callable[..., Any]) -> Callable[..., Any]:
    """Return Celery's `on_success` with a count of the successes. It passes failures on to `on_failure`."""

    def count(request: ReconnectSafeRequest, failed__retval__runtime: tuple[Any, Any, float], **options: Any) -> Any:
        if not failed__retval__runtime[0]:
            request.measures.ended(None, request.time_start)
        return on_success(request, failed__retval__runtime, **options)

    return count


def request_class(
    acks: Acks, measures: WorkerMeasures, on_killed: Callable[[Any], object]
) -> type[ReconnectSafeRequest]:
    """Return a request class that is bound to `acks`. Celery makes the requests, and passes only its own arguments."""
    fields = {"acks": acks, "measures": measures, "on_killed": staticmethod(on_killed)}
    return type("ReconnectSafeRequest", (ReconnectSafeRequest,), fields)


class AckStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tells `Acks` of each new connection, and of the orderly end."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        acks, channel = worker_of(consumer).parts.acks, consumer.task_consumer.channel
        acks.call_soon = consumer.call_soon
        if acks.supports(channel):
            acks.begin(channel, partial(restore_prefetch_count, consumer))
        else:
            is_limited = consumer.initial_prefetch_count > 0 and not uses_quorum_queues(consumer)
            acks.prefetch.begin(consumer, worker_of(consumer).running if is_limited else 0)

    def shutdown(self, consumer: Any) -> None:
        worker_of(consumer).parts.acks.end()


def put_back_unstarted(acks: Acks) -> None:
    """Put back the messages whose tasks have not started. Celery drops them when a connection is lost."""
    for request in set(reserved_requests()) - set(active_requests()):
        if acks.supports(request.message.channel):
            acks.defer(request.message.delivery_tag, put_back=True)
