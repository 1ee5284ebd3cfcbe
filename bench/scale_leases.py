"""Measure one poll of the leases of many workers, of which half have renewed since the poll before.

An executor polls each second, and a worker renews every two seconds. Here the polls and the renewals take turns, so
the figure does not depend on how fast this machine plays the workers.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import msgspec

from bench.crew import Place
from celeriac import __version__
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Claims, Lease, new_holder
from celeriac.backend.claims.lease_monitor import POLL_INTERVAL, LeaseMonitor
from celeriac.broker.app import make_app

POLLS = 6
RUNNING = 16  # tasks of each worker
RENEWERS = 4  # threads
TIMEOUT = 30.0  # seconds


def polling(place: Place, counts: tuple[int, ...]) -> list[tuple[float, float]]:
    """Return the share of a core that the polls take, for each number of workers."""
    app = make_app(broker_url=place.broker, result_backend=place.backend)
    writer, reader = claims_for(app, timeout=TIMEOUT), claims_for(app, timeout=TIMEOUT)
    assert writer is not None
    assert reader is not None
    leases = [new_lease(number) for number in range(max(counts))]
    shares = []
    monitor = LeaseMonitor(reader, on_news=lambda: None, poll_interval=10_000.0)  # it polls when told to
    monitor.wait_for_poll(TIMEOUT)
    try:
        for count in counts:
            costs = [cost_of_poll(monitor, writer, leases[:count], poll) for poll in range(POLLS)]
            shares.append((float(count), statistics.median(costs[1:]) / POLL_INTERVAL))
    finally:
        for lease in leases:
            writer.end_lease(lease.holder)
        monitor.close()
        writer.close()
    return shares


def new_lease(number: int) -> Lease:
    return Lease(
        holder=new_holder(),
        name=f"celery@polled-{number}",
        host=f"polled-{number}",
        pid=number,
        boot_id=uuid4().hex,
        queues=("polled",),
        slots=RUNNING,
        running=tuple(str(uuid4()) for _ in range(RUNNING)),
        refused=0,
        version=__version__,
        keys=(),
    )


def cost_of_poll(monitor: LeaseMonitor, writer: Claims, leases: list[Lease], poll: int) -> float:
    """Renew half of the leases, at first all of them. Return the CPU seconds of a poll."""
    renewed = [
        msgspec.structs.replace(lease, number=poll, clock=time.time())
        for number, lease in enumerate(leases)
        if poll == 0 or number % 2 == poll % 2
    ]
    with ThreadPoolExecutor(RENEWERS) as pool:
        list(pool.map(writer.renew, renewed))
    began = time.thread_time()
    monitor.poll()
    return time.thread_time() - began
