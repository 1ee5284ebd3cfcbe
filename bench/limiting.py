"""Measure the cost of a limit that never binds: the same commands with a concurrency key and without, in turns."""

from __future__ import annotations

from contextlib import ExitStack

from bench.claiming import COMMANDS, THREADS, WORKERS, compared, in_turns
from bench.crew import Place, cpu_of, crew
from bench.player import OURS, Cost, players
from bench.table import Row

QUEUE = "limited"


def commands(place: Place, rounds: int) -> list[Row]:
    with ExitStack() as stack:
        workers = stack.enter_context(crew(place, QUEUE, WORKERS, THREADS))
        ours = stack.enter_context(players())(OURS, "bench.ours", place.broker, place.backend)

        def run(*, limited: bool, count: int = COMMANDS) -> Cost:
            before = cpu_of(workers)
            cost: Cost = ours.ask("run_commands", count=count, queue=QUEUE, claims=True, limited=limited)
            return {**cost, "workers' CPU": cpu_of(workers) - before}

        for limited in (True, False):
            run(limited=limited, count=200)
        pairs = in_turns(lambda: run(limited=True), lambda: run(limited=False), rounds)
    what = f"{COMMANDS:,} × `/bin/true`, {place.name}, {WORKERS} workers × {THREADS} threads"
    return [compared(f"{what}: with a key whose limit never binds", COMMANDS, pairs, bar=None)]
