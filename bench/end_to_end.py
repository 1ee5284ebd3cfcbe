"""Measure 5,000 no-op tasks on two Celery workers with four threads: ours beside plain Celery's group and join."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.player import OURS, ROOT, Cost, players
from bench.table import Row, at_least, at_most

COUNT = 5_000
WORKERS = 2
LATENCIES = 50
POLL_INTERVAL = 0.02  # seconds


def end_to_end(url: str, rounds: int) -> list[Row]:
    with workers(url), players() as new:
        ours = new(OURS, "bench.ours", url, url)
        celery = new(OURS, "bench.rivals", "celery", url, url)
        ours.ask("run_no_ops", count=100)  # once the workers are up
        first = ours.ask("first_results", count=LATENCIES)
        for way in ("join", "join_native"):
            celery.ask("run_no_ops", count=100, way=way)
        pairs = []
        for number in range(rounds):
            turns: list[Callable[[], Cost]] = [
                lambda: ours.ask("run_no_ops", count=COUNT),
                lambda: min(
                    (celery.ask("run_no_ops", count=COUNT, way=way) for way in ("join", "join_native")), key=wall
                ),
            ]
            costs = [turn() for turn in (turns if number % 2 else turns[::-1])]
            pairs.append(costs if number % 2 else costs[::-1])
    ratios = [theirs["wall"] / mine["wall"] for mine, theirs in pairs]
    ratio = statistics.median(ratios)
    mine, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    scatter = f"{ratio:.2f}x ({', '.join(f'{one:.2f}' for one in ratios)})"
    what = f"{COUNT:,} no-ops, Redis, {WORKERS} workers × 4 threads, against Celery's group and the better of its joins"
    median = statistics.median(first)
    soon = f"{median * 1e3:.1f} ms (longest {max(first) * 1e3:.0f})"
    return [
        Row(what, told(mine), told(theirs), scatter, "1x", at_least(ratio, 1.0)),
        Row(
            f"first result, idle system, median of {LATENCIES}",
            soon,
            "",
            "",
            f"{POLL_INTERVAL * 1e3:.0f} ms",
            at_most(median, POLL_INTERVAL),
        ),
    ]


def wall(cost: Cost) -> float:
    return cost["wall"]


def told(costs: list[Cost]) -> str:
    took, cpu = (statistics.median(cost[what] for cost in costs) for what in ("wall", "cpu"))
    return f"{COUNT / took:,.0f}/s, {took / COUNT * 1e6:.0f} µs, {cpu / COUNT * 1e6:.0f} µs CPU"


@contextmanager
def workers(url: str) -> Iterator[None]:
    command = [OURS, "-m", "bench.worker", url, url]
    started = [subprocess.Popen([*command, f"worker-{n}"], cwd=ROOT, stderr=subprocess.DEVNULL) for n in range(WORKERS)]
    try:
        yield
    finally:
        for worker in started:
            worker.kill()
            worker.wait()
