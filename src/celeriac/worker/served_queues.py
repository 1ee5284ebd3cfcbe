"""Change the queues of a running worker by remote control: Celery's `add_consumer` and `cancel_consumer`, and a pause.

add_consumer    ─► checks ─► declared over a channel of its own ─► consumed from, also after a reconnection ─► the lease
cancel_consumer ─► no more messages of the queue; those that the worker has received still run
pause           ─► no more messages of any queue; one that arrives at this moment goes back ─► the lease names no queue
resume          ─► consumed from again

Celery itself confirms before it declares the queue. If RabbitMQ then refuses the queue, it closes the connection, and
again after each reconnection. A queue that is cancelled and added again is lost at the next reconnection.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from amqp.exceptions import AMQPNotImplementedError, ChannelError

from celeriac.errors import QueueRefused
from celeriac.task.task import is_unicode
from celeriac.worker.celery_internals import worker_of
from celeriac.worker.log import log_event
from celeriac.worker.pause import WorkerPause

MAX_QUEUE_NAME = 255  # bytes, RabbitMQ's limit
MAX_SERVED_QUEUES = 1_000  # far below what a lease can name

MAX_ASKER = 200  # characters of the text that says who asks

Reply: TypeAlias = dict[str, str]
PauseReply: TypeAlias = dict[str, str | bool | int]


class ServedQueues:
    """The queues of one consumer. For the thread of the worker's event loop."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def add_consumer(self, _state: Any, queue: Any, exchange: str | None = None, **options: Any) -> Reply:
        """Consume from a queue. The name alone stands for a queue of Celery's default kind."""
        queues = self._consumer.app.amqp.queues
        if (problem := self._problem(queue, queues)) is not None:
            return {"error": problem}
        if queue in queues.consume_from or queue in self._pause.queues:
            return {"ok": f"already consuming from {queue}"}
        was_known = queue in queues
        try:
            declared = queues.add(queue, exchange=exchange, **options) if exchange and not was_known else queues[queue]
            self._declare(declared)
        except KeyError:
            return {"error": f"{queue!r} is not in task_queues, and task_create_missing_queues is off"}
        except (ChannelError, AMQPNotImplementedError) as error:
            if not was_known:
                del queues[queue]
            return {"error": str(QueueRefused.from_reply(error, queue))}
        if self._pause.is_on:
            self._pause.queues |= {queue}
        else:
            self._consume(queue)
        return {"ok": f"add consumer {queue}"}

    def cancel_consumer(self, _state: Any, queue: Any, **_: Any) -> Reply:
        """Take no more messages of a queue."""
        if queue in self._pause.queues:
            self._pause.queues -= {queue}
        elif queue in self._consumer.app.amqp.queues.consume_from:
            self._consumer.cancel_task_queue(queue)
        else:
            return {"ok": f"was not consuming from {queue}"}
        return {"ok": f"no longer consuming from {queue}"}

    def pause(self, _state: Any, asked_by: Any = None, **_: Any) -> PauseReply:
        """Take no more messages until `resume`. Running tasks go on."""
        if worker_of(self._consumer).parts.shutdown.is_shutting_down:
            return {"error": "the worker is draining"}
        was_paused = self._pause.is_on
        if not was_paused:
            names = list(self._consumer.app.amqp.queues.consume_from)
            self._pause.begin(names, asker_of(asked_by))
            for name in names:
                self._consumer.cancel_task_queue(name)
        return self._pause_changed("paused", asked_by, is_changed=not was_paused)

    def resume(self, _state: Any, asked_by: Any = None, **_: Any) -> PauseReply:
        """Take messages again."""
        was_paused, names = self._pause.is_on, sorted(self._pause.queues)
        if was_paused and not worker_of(self._consumer).parts.shutdown.is_shutting_down:
            self._pause.end()
            for name in names:
                self._consume(name)
        return self._pause_changed("resumed", asked_by, is_changed=was_paused)

    @property
    def _pause(self) -> WorkerPause:
        pause: WorkerPause = worker_of(self._consumer).parts.pause
        return pause

    def _pause_changed(self, event: str, asked_by: Any, *, is_changed: bool) -> PauseReply:
        worker = worker_of(self._consumer)
        if is_changed:
            log_event(event, asked_by=asker_of(asked_by))
            if worker.parts.lease_manager is not None:
                worker.parts.lease_manager.renew()
        return {"ok": event, "changed": is_changed, "running": worker.running}

    def _consume(self, name: str) -> None:
        queues = self._consumer.app.amqp.queues
        queues.select_add(queues[name])
        self._consumer.add_task_queue(name)

    def _problem(self, queue: Any, queues: Any) -> str | None:
        if worker_of(self._consumer).parts.shutdown.is_shutting_down:
            return "the worker is draining; give another worker"
        if not is_queue_name(queue):
            return f"{queue!r} is not the name of a queue; give 1 to {MAX_QUEUE_NAME} printable characters"
        if len(queues.consume_from) >= MAX_SERVED_QUEUES:
            return f"the worker serves {MAX_SERVED_QUEUES} queues already; start another worker"
        return None

    def _declare(self, queue: Any) -> None:
        """Declare a queue of RabbitMQ over a channel of its own, which RabbitMQ closes if it refuses the queue."""
        connection = self._consumer.connection
        if connection.transport.driver_type == "amqp":
            with connection.channel() as channel:
                queue(channel).declare()


def asker_of(value: Any) -> str | None:
    """Return the text that says who asks; None if it is no text that can be stored."""
    return value[:MAX_ASKER] if isinstance(value, str) and is_unicode(value) else None


def is_queue_name(value: Any) -> bool:
    """Return whether brokers and leases can hold a queue of this name."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value.encode()) <= MAX_QUEUE_NAME
