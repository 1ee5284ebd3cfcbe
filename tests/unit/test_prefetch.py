"""How many messages RabbitMQ may deliver while commands run whose messages were put back."""

from __future__ import annotations

from kombu.common import QoS

from celeriac.worker.prefetch import Prefetch


class TaskConsumer:
    """Counts how often its queues are consumed from."""

    def __init__(self) -> None:
        self.consumed = 0

    def consume(self) -> None:
        self.consumed += 1


class Consumer:
    """Has the numbers that Celery's consumer has."""

    def __init__(self, slots: int, multiplier: int = 1) -> None:
        self.max_prefetch_count, self.prefetch_multiplier = slots * multiplier, multiplier
        self.task_consumer = TaskConsumer()
        self.sent: list[int] = []
        self.qos = QoS(lambda prefetch_count: self.sent.append(prefetch_count), self.max_prefetch_count)


def connected(consumer: Consumer, running: int) -> Prefetch:
    """Return the prefetch after a reconnection during which so many commands ran; Celery begins to consume next."""
    prefetch = Prefetch()
    prefetch.begin(consumer, running)
    consumer.task_consumer.consume()
    return prefetch


def test_free_slots_alone_are_filled():
    consumer = Consumer(slots=4)
    prefetch = connected(consumer, running=3)
    assert (consumer.sent, consumer.task_consumer.consumed) == ([1], 1)
    for _ in range(5):  # two of them are of messages of the new connection's
        prefetch.command_ended()
    assert (consumer.sent, consumer.task_consumer.consumed) == ([1, 2, 3, 4], 1)


def test_nothing_is_taken_while_no_slot_is_free():
    consumer = Consumer(slots=2)
    prefetch = connected(consumer, running=3)
    assert consumer.task_consumer.consumed == 0
    prefetch.command_ended()
    assert consumer.task_consumer.consumed == 0
    prefetch.command_ended()
    assert (consumer.sent, consumer.task_consumer.consumed) == ([1], 1)
    prefetch.command_ended()
    assert (consumer.sent, consumer.task_consumer.consumed) == ([1, 2], 1)


def test_a_multiplier_counts_for_each_command():
    consumer = Consumer(slots=3, multiplier=4)
    prefetch = connected(consumer, running=1)
    prefetch.command_ended()
    assert consumer.sent == [8, 12]


def test_a_worker_without_a_prefetch_limit_consumes():
    consumer = Consumer(slots=2, multiplier=0)
    prefetch = connected(consumer, running=0)
    prefetch.command_ended()
    assert (consumer.sent, consumer.task_consumer.consumed) == ([], 1)
