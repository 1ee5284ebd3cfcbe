"""Measure an idle executor beside more and more simulated workers, and ten executors beside all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bench.crew import Place
from bench.curves import Curves, Measured
from bench.player import OURS, Player, players
from bench.scale_leases import polling
from bench.table import Row, at_most

QUEUE = "scale"
SLOTS = 16
CROWDS = 2  # processes that simulate the workers
EXECUTORS = 10
MOST_HEARTBEAT = 0.005  # CPU seconds
MOST_POLLING = 0.02  # of a core
SETTLING = 6.0  # seconds; three renewals
LATE = 4.5  # seconds; a worker that renews later than this is suspected, so its machine was too slow for the figure


def idle(place: Place, workers: Sequence[int], in_flight: int, seconds: float) -> Measured:
    """Measure one idle executor beside more and more workers, then ten executors beside all of them."""
    measured = Measured()
    most = max(workers)
    with players() as new:
        crowds = [new(OURS, "bench.simulated_workers", place.broker, place.backend, QUEUE) for _ in range(CROWDS)]
        executor = new_executor(new, place, late_binding=False)
        executor.ask("queue", count=in_flight)
        executor.ask("drive", in_flight=in_flight)
        costs: dict[int, Any] = {}
        before = 0
        for count in workers:
            for number, crowd in enumerate(crowds):
                crowd.ask("start", count=(count - before) // CROWDS, slots=SLOTS, prefix=f"from-{before}-{number}")
            executor.ask("drive", running=count * SLOTS)
            begin_to_check(crowds)
            costs[count] = executor.ask("idle", seconds=seconds)
            check(crowds)
            before = count
        what = f"{most:,} workers, {most * SLOTS:,} tasks running, {in_flight:,} in flight, {place.name}"
        measured.rows += idle_rows(what, costs[most])
        measured.rows.append(ten(new, place, executor, what, seconds))
        check(crowds)
    measured.curves["heartbeat"] = Curves(
        f"CPU of an idle heartbeat, ms ({in_flight:,} in flight)",
        "workers",
        {
            "median": [(count, cost["median"] * 1e3) for count, cost in costs.items()],
            "longest": [(count, cost["longest"] * 1e3) for count, cost in costs.items()],
        },
        MOST_HEARTBEAT * 1e3,
    )
    measured.curves["idle"] = Curves(
        "CPU of an idle executor by thread, % of a core",
        "workers",
        {
            name: [(count, part(cost, threads) * 100) for count, cost in costs.items()]
            for name, threads in PARTS.items()
        },
    )
    return measured


PARTS = {
    "all": (),
    "leases": ("celeriac-leases",),
    "replies of workers": ("celeriac-workers",),
    "heartbeats": ("MainThread",),
    "search for lost tasks": ("celeriac-lost-tasks",),
}
"""The threads of each curve."""


def part(cost: dict[str, Any], threads: Sequence[str]) -> float:
    share = sum(cost["threads"].get(name, 0.0) for name in threads) if threads else cost["share"]
    return max(float(share), 1e-5)  # a logarithmic axis has no zero


def idle_rows(what: str, cost: dict[str, Any]) -> list[Row]:
    told = f"{cost['median'] * 1e3:.2f} ms (longest {cost['longest'] * 1e3:.1f} ms of {cost['beats']})"
    polls = part(cost, PARTS["leases"])
    return [
        Row(
            f"CPU of an idle heartbeat: {what}",
            told,
            "",
            "",
            f"{MOST_HEARTBEAT * 1e3:g} ms",
            at_most(cost["median"], MOST_HEARTBEAT),
        ),
        Row(
            f"polling of the leases, of a core: {what}",
            f"{polls:.2%}",
            "",
            "",
            f"{MOST_POLLING:.0%}",
            at_most(polls, MOST_POLLING),
        ),
        Row(f"all threads of the idle executor, of a core: {what}", f"{cost['share']:.2%}", "", "", "", None),
    ]


def ten(new: Any, place: Place, first: Player, what: str, seconds: float) -> Row:
    """Measure the polling of ten executors together, against ten times that of one alone."""
    alone = part(first.ask("idle", seconds=seconds), PARTS["leases"])
    executors = [first, *(new_executor(new, place, late_binding=False) for _ in range(EXECUTORS - 1))]
    for executor in executors:
        executor.tell("idle", seconds=seconds)
    together = sum(part(executor.hear(), PARTS["leases"]) for executor in executors)
    growth = together / (EXECUTORS * alone)
    return Row(
        f"polling of the leases by {EXECUTORS} executors, of a core: {what}",
        f"{together:.2%}",
        f"{EXECUTORS} times that of one: {EXECUTORS * alone:.2%}",
        f"{growth:.2f}",
        "1",
        at_most(growth, 1.0),
    )


def new_executor(new: Any, place: Place, *, late_binding: bool) -> Player:
    executor: Player = new(OURS, "bench.scaled_executor", place.broker, place.backend, QUEUE)
    executor.ask("open", late_binding=late_binding)
    return executor


def begin_to_check(crowds: Sequence[Player]) -> None:
    """Forget how late the simulated workers were while they took their tasks, once they are in time again."""
    time.sleep(SETTLING)
    for crowd in crowds:
        crowd.ask("state")


def check(crowds: Sequence[Player], latest: float = LATE) -> None:
    """Raise an error if the simulated workers were too slow, since `begin_to_check`, to be taken for live ones."""
    for crowd in crowds:
        state = crowd.ask("state")
        if state["problems"] or state["latest_renewal"] > latest:
            raise RuntimeError(f"the simulated workers failed, or were too slow: {state}")


def lease_polls(places: Sequence[Place], workers: Sequence[int]) -> Measured:
    """Measure the polls of leases alone, on each store."""
    lines = {place.name: polling(place, tuple(workers)) for place in places}
    rows = [
        Row(
            f"polls of {int(count):,} leases, half of them renewed, of a core: {name}",
            f"{share:.2%}",
            "",
            "",
            f"{MOST_POLLING:.0%}",
            at_most(share, MOST_POLLING),
        )
        for name, line in lines.items()
        for count, share in line[-1:]
    ]
    percent = {name: [(count, share * 100) for count, share in line] for name, line in lines.items()}
    curves = Curves("Polling of the leases, % of a core", "workers", percent, MOST_POLLING * 100)
    return Measured(rows, {"polling": curves})
