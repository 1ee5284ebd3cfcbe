"""Take no message that cannot start, on RabbitMQ, while commands run whose messages went back to their queues.

connection lost ─► RabbitMQ puts the messages back, and the commands go on
connected again ─► fewer messages are prefetched, and none while such commands take all slots
a command ends  ─► one more is prefetched; if its task is handed back, its message is sent again

On Redis the messages stay with the worker: see `acks`. On quorum queues RabbitMQ takes the number of a consumer when it
begins, so there it stays the same.
"""

from __future__ import annotations

from typing import Any

from celeriac.broker.celery_internals import republish
from celeriac.server_errors import is_server_error
from celeriac.worker.log import logger


class Prefetch:
    """The number of messages that RabbitMQ may deliver. For the thread of the worker's event loop."""

    def __init__(self) -> None:
        self._consumer: Any = None
        self._detached = 0
        """How many commands run whose messages RabbitMQ has put back."""

    def begin(self, consumer: Any, running: int) -> None:
        """Take up a new connection, before the first message is delivered over it.

        `running` is how many commands of earlier connections run; 0 if the prefetch count cannot be changed.
        """
        self._consumer, self._detached = consumer, running
        if running == 0:
            return
        self._apply()
        if self._allowed < 1:
            consumer.task_consumer.consume = lambda **_: None  # Celery calls it next

    def command_ended(self) -> None:
        """Take note that a command has ended whose message was put back."""
        if self._detached == 0:
            return
        was_held = self._allowed < 1
        self._detached -= 1
        self._apply()
        consumer = self._consumer.task_consumer
        if was_held and self._allowed >= 1 and consumer is not None:
            vars(consumer).pop("consume", None)
            consumer.consume()

    def send_again(self, message: Any) -> None:
        """Send a message again whose task is handed back: a worker may have dropped the message that RabbitMQ has put
        back. Where both are delivered, only one of them is granted the claim."""
        try:
            republish(self._consumer.task_consumer.channel, message)
        except Exception as error:
            if not is_server_error(error):
                raise
            logger.debug("a message could not be sent again; the executor will send it: %s", error)

    @property
    def _allowed(self) -> int:
        consumer = self._consumer
        return int(consumer.max_prefetch_count - self._detached * consumer.prefetch_multiplier)

    def _apply(self) -> None:
        qos = self._consumer.qos
        if qos is not None:
            qos.value = max(1, self._allowed)  # to RabbitMQ 0 is no limit
            qos.update()
