"""Measure the cost of claims and leases: the same commands from end to end, with and without them, in turns."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from bench.crew import CLAIMING, UNCLAIMING, Place, cpu_of, crew
from bench.player import OURS, ROOT, Cost, players
from bench.table import Row, at_least
from bench.worker import CLAIMED_QUEUE, QUEUE

COMMANDS, NO_OPS = 2_500, 5_000
WORKERS, THREADS = 2, 4
LEAST = 0.9  # of the rate without claims


def commands(place: Place, rounds: int) -> list[Row]:
    with ExitStack() as stack:
        crews = {
            queue: stack.enter_context(crew(place, queue, WORKERS, THREADS, program=program))
            for queue, program in (("claimed", CLAIMING), ("unclaimed", UNCLAIMING))
        }
        new = stack.enter_context(players())
        ours = {way: new(OURS, "bench.ours", place.broker, place.backend) for way in ("claimed", "unclaimed")}

        def run(way: str, count: int = COMMANDS) -> Cost:
            before = cpu_of(crews[way])
            cost: Cost = ours[way].ask("run_commands", count=count, queue=way, claims=way == "claimed")
            return {**cost, "workers' CPU": cpu_of(crews[way]) - before}

        for way in ours:
            run(way, 200)
        pairs = in_turns(lambda: run("claimed"), lambda: run("unclaimed"), rounds)
    what = f"{COMMANDS:,} × `/bin/true`, {place.name}, {WORKERS} workers × {THREADS} threads: with claims and leases"
    return [compared(what, COMMANDS, pairs)]


def no_ops(place: Place, rounds: int) -> list[Row]:
    with no_op_workers(place), players() as new:
        ours = new(OURS, "bench.ours", place.broker, place.backend)

        def run(queue: str, count: int = NO_OPS) -> Cost:
            cost: Cost = ours.ask("run_no_ops", count=count, queue=queue)
            return cost

        for queue in (CLAIMED_QUEUE, QUEUE):
            run(queue, 200)
        pairs = in_turns(lambda: run(CLAIMED_QUEUE), lambda: run(QUEUE), rounds)
    what = f"{NO_OPS:,} no-ops, {place.name}, {WORKERS} workers × {THREADS} threads: each claimed"
    return [compared(what, NO_OPS, pairs)]


@contextmanager
def no_op_workers(place: Place) -> Iterator[None]:
    command = [OURS, "-m", "bench.worker", place.broker, place.backend]
    names = [(f"{queue}-{n}", queue) for queue in (CLAIMED_QUEUE, QUEUE) for n in range(WORKERS)]
    started = [subprocess.Popen([*command, *words], cwd=ROOT, stderr=subprocess.DEVNULL) for words in names]
    try:
        yield
    finally:
        for worker in started:
            worker.kill()
            worker.wait()


def in_turns(one: Callable[[], Cost], other: Callable[[], Cost], rounds: int) -> list[tuple[Cost, Cost]]:
    """Run both parties, each first in every second round."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            first, second = one(), other()
        else:
            second, first = other(), one()
        pairs.append((first, second))
    return pairs


def compared(what: str, count: int, pairs: list[tuple[Cost, Cost]], *, bar: float | None = LEAST) -> Row:
    """Return the row of both parties. Without a bar they are only compared."""
    ratios = [without["wall"] / with_["wall"] for with_, without in pairs]
    ratio = statistics.median(ratios)
    scatter = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
    with_, without = ([pair[side] for pair in pairs] for side in (0, 1))
    shown, reached = ("", None) if bar is None else (f"{bar:g}", at_least(ratio, bar))
    return Row(what, told(with_, count), f"without: {told(without, count)}", scatter, shown, reached)


def told(costs: list[Cost], count: int) -> str:
    """Return the executor's CPU for each task, and the workers' if it was measured."""
    median = {what: statistics.median(cost[what] for cost in costs) for what in costs[0]}
    each = [f"{what} {median[what] / count * 1e6:.0f} µs" for what in median if what != "wall"]
    return f"{count / median['wall']:,.0f}/s, {', '.join(each)}"
