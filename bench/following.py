"""Measure `sync` with many tasks in flight, all STARTED, and 10 changes at each heartbeat: ours and the incumbent.

Our executor gets the change feed that workers send. Its clock advances by a second for each heartbeat, so that the
mean of `HEARTBEATS` heartbeats includes the slow reconcile; for the bare figure the clock stands still.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.backends import Backend, worker_store
from bench.player import INCUMBENTS, OURS, Cost, Player, players
from bench.table import Row, at_least, at_most
from bench.worker import REPORT

CHANGES = 10
BARE = 10  # heartbeats
HEARTBEATS = 180  # heartbeats, a second apart: a long interval of the reconcile
SETTLING = 400  # heartbeats until the reads of the reconcile are spread evenly
INCUMBENT_HEARTBEATS = 6  # each of them is the same
LATENCIES = 50
LEAST = 100.0
MAX_LATENCY = 0.005  # seconds from the commit of a result until its event
ARRIVAL = 0.03  # seconds for changes to arrive before a heartbeat


def following(backend: Backend, incumbents_url: str, sizes: list[int]) -> list[Row]:
    with players() as new:
        found = []
        for size in sizes:
            theirs = the_incumbent(
                new(INCUMBENTS, "bench.scheduler", "incumbent", "memory://", incumbents_url, "1"), backend, size
            )
            found += ours(new(OURS, "bench.ours", backend.broker, backend.url), backend, size, theirs)
    return found


def the_incumbent(player: Player, backend: Backend, size: int) -> Cost:
    """Pass each task through `queue_workload` and `trigger_tasks`, to a broker in memory."""
    player.ask("versions")
    backend.clear()
    backend.learn(lambda **facts: player.ask("store", **facts))
    player.ask("put_out", count=size, prefix="out-")
    backend.fill([f"out-{n}" for n in range(size)])
    player.ask("sync")
    costs = []
    for beat in range(INCUMBENT_HEARTBEATS):
        backend.change([f"out-{beat * CHANGES + n}" for n in range(CHANGES)])
        costs.append(player.ask("sync"))
    check(sum(cost["events"] for cost in costs), INCUMBENT_HEARTBEATS * CHANGES)
    player.close()
    return {what: statistics.median(cost[what] for cost in costs) for what in ("wall", "cpu")}


def ours(player: Player, backend: Backend, size: int, theirs: Cost) -> list[Row]:
    backend.clear()
    backend.learn(lambda **facts: player.ask("store", **facts))
    player.ask("put_out", count=size, prefix="out-")
    backend.fill([f"out-{n}" for n in range(size)])
    running = 0
    while running < size:
        running += player.ask("sync", after=1.0)["events"]
    ids = (f"out-{n}" for n in range(size))
    backend.change([next(ids)])  # the change feed counts as complete only after a first event
    wait_for_push(player)
    for _ in range(SETTLING):
        player.ask("sync", after=1.0)
    beats = {0.0: BARE, 1.0: HEARTBEATS}
    costs: dict[float, Cost] = {}
    for after, count in beats.items():
        costs[after] = mean(
            [heartbeat(player, backend, [next(ids) for _ in range(CHANGES)], after) for _ in range(count)]
        )
    batches = [[next(ids) for _ in range(LATENCIES)] for _ in range(2)]
    from_commit = latencies(player, backend.commit, batches[0])
    from_store = latencies(player, worker_store(backend, REPORT), batches[1])
    player.ask("stop_following")
    player.close()
    what = f"sync, {size:,} tasks in flight, {CHANGES} changes, {backend.name}"
    return [
        compared(f"{what}: CPU", costs[0.0], theirs),
        compared(
            f"{what}: CPU, mean of {HEARTBEATS} heartbeats, a second apart, with the slow reconcile", costs[1.0], theirs
        ),
        seen(f"from a stored result to its event, {size:,} tasks in flight, {backend.name}", from_commit),
        seen(f"the same from the start of Celery's store, {size:,} tasks in flight, {backend.name}", from_store),
    ]


def wait_for_push(player: Player) -> None:
    until = time.monotonic() + 10
    while not player.ask("pushes"):
        if time.monotonic() > until:
            raise RuntimeError("the backend does not push")
        time.sleep(ARRIVAL)


def heartbeat(player: Player, backend: Backend, ids: list[str], after: float) -> Cost:
    backend.change(ids)
    time.sleep(ARRIVAL)
    cost: Cost = player.ask("sync", after=after)
    late = 0
    while cost["events"] < len(ids):  # on a busy machine; the cost of another look counts
        time.sleep(ARRIVAL)
        more = player.ask("sync", after=0.0)
        cost = {what: cost[what] + more[what] for what in cost}
        late += 1
        if late > 100:
            raise RuntimeError(f"{cost['events']} of {len(ids)} changes were seen")
    return cost


def latencies(player: Player, store: Callable[[str], None], ids: list[str]) -> list[float]:
    """Store results, and return the seconds from before each store until its event."""
    player.tell("watch", count=len(ids))
    began = []
    for task_id in ids:
        began.append(time.monotonic())
        store(task_id)
        time.sleep(0.05)
    seen: list[float] = player.hear()
    check(len(seen), len(began))
    return [after - before for before, after in zip(began, seen, strict=True)]


def mean(costs: list[Cost]) -> Cost:
    return {what: statistics.mean(cost[what] for cost in costs) for what in ("wall", "cpu")}


def compared(what: str, mine: Cost, theirs: Cost) -> Row:
    ratio = theirs["cpu"] / mine["cpu"]
    return Row(what, told(mine), told(theirs), f"{ratio:.0f}x", f"{LEAST:g}x", at_least(ratio, LEAST))


def told(cost: Cost) -> str:
    return f"{cost['wall'] * 1e3:,.2f} ms, {cost['cpu'] * 1e3:,.2f} ms CPU"


def seen(what: str, delays: list[float]) -> Row:
    median = statistics.median(delays)
    spread = f"{median * 1e3:.1f} ms (longest {max(delays) * 1e3:.0f})"
    bar = f"{MAX_LATENCY * 1e3:.0f} ms"
    return Row(f"{what}, median of {len(delays)}", spread, "", "", bar, at_most(median, MAX_LATENCY))


def check(found: Any, expected: int) -> None:
    if found != expected:
        raise RuntimeError(f"{found} of {expected} changes were seen")
