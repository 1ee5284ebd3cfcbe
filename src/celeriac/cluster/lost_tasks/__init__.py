"""Where is what was sent? Asks leases, claims, the broker and the workers, so that a task that is in no place can be
sent again, and one whose worker has died can be run elsewhere.

look_for(tasks) ─► a thread of its own ─► leases: what live workers run and hold
                                       ─► claims: whose worker is dead; these are fenced off
                                       ─► broker: its queues, and what it has delivered and not seen acknowledged
                                       ─► workers without a lease: what they hold
missing()       ◄─ claimed by the dead; or found in no place, twice

claimed    what workers have claimed, and whose worker is dead
search     asks them all, until all have answered
redis      reads the lists of the queues and the hash of what is unacknowledged
amqp       counts messages and consumers: RabbitMQ does not say which messages it has
"""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.cluster.lost_tasks.search import Broker, BrokerScan
from celeriac.cluster.worker_registry import WorkerRegistry


def lost_task_detector_for(
    app: Celery,
    *,
    workers: WorkerRegistry,
    leases: LeaseMonitor | None,
    timeout: float,
    on_found: Callable[[], None],
) -> BrokerScan | None:
    """None for a broker that cannot be asked, and where neither leases nor workers say what is whose. `timeout`, in
    seconds, bounds one operation on the broker. `on_found` is called by a thread when `missing` has something to say.
    """
    if leases is None and not app.conf.worker_enable_remote_control:
        return None
    match app.connection_for_write().transport.driver_type:
        case "redis":
            from celeriac.cluster.lost_tasks.redis import RedisQueues

            broker: Broker = RedisQueues()
        case "amqp":
            from celeriac.cluster.lost_tasks.amqp import AmqpQueues

            broker = AmqpQueues(workers)
        case _:
            return None
    return BrokerScan(app, broker, workers, leases, timeout=timeout, on_found=on_found)
