"""Where is what was sent? Asks the broker and the workers, so that a task that is in no place can be sent again.

look_for(tasks) ─► a thread of its own ─► broker: its queues, and what it has delivered and not seen acknowledged
                                       ─► workers: what they hold
nowhere()       ◄─ found in no place, twice

search     asks both, until all have answered
redis      reads the lists of the queues and the hash of what is unacknowledged
amqp       counts messages and consumers: RabbitMQ does not say which messages it has
"""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from celeriac.capacity import LiveWorkers
from celeriac.whereabouts.search import Broker, Search


def whereabouts_for(
    app: Celery, workers: LiveWorkers, *, timeout: float, on_found: Callable[[], None]
) -> Search | None:
    """None for a broker that cannot be asked. `timeout`, in seconds, bounds one operation on the broker.

    `on_found` is called by a thread when `nowhere` has something to say."""
    match app.connection_for_write().transport.driver_type:
        case "redis":
            from celeriac.whereabouts.redis import RedisQueues

            broker: Broker = RedisQueues()
        case "amqp":
            from celeriac.whereabouts.amqp import AmqpQueues

            broker = AmqpQueues(workers)
        case _:
            return None
    return Search(app, broker, workers, timeout=timeout, on_found=on_found)
