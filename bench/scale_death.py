"""Measure how soon the tasks of many workers that die at once run elsewhere, and that each runs once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.crew import Place
from bench.curves import Measured
from bench.player import OURS, Player, players
from bench.scale_idle import CROWDS, QUEUE, SLOTS, begin_to_check, check, new_executor
from bench.table import Row, at_most
from celeriac.config.lease import LEASE_DURATION

DEAD_SHARE = 0.3
DEATH_TIMEOUT = 60.0  # seconds
MOST_DEATH = 20.0  # seconds


def death(place: Place, workers: int, renewers: int = 1) -> Measured:
    """Kill some workers at once while others take their place. Their tasks must run there, each once."""
    with players() as new:
        crowds = [new(OURS, "bench.simulated_workers", place.broker, place.backend, QUEUE) for _ in range(CROWDS)]
        executor = new_executor(new, place, late_binding=True)
        each = workers // CROWDS
        for number, crowd in enumerate(crowds):
            crowd.ask("start", count=each, slots=SLOTS, prefix=f"old-{number}", renewers=renewers)
        executor.ask("queue", count=workers * SLOTS)
        executor.ask("drive", running=workers * SLOTS)
        begin_to_check(crowds)
        executor.ask("follow")
        dying = round(each * DEAD_SHARE)
        moment = time.monotonic()
        killed = {key for crowd in crowds for key in crowd.ask("kill", count=dying)}
        for number, crowd in enumerate(crowds):
            crowd.ask("start", count=dying, slots=SLOTS, prefix=f"new-{number}", renewers=renewers)
        starts: list[Any] = []
        while {key for key, _, _ in starts} < killed and time.monotonic() < moment + DEATH_TIMEOUT:
            time.sleep(0.5)
            starts = [start for crowd in crowds for start in crowd.ask("starts", after=moment)]
        took = max((at for _, _, at in starts), default=moment + DEATH_TIMEOUT) - moment
        check(crowds, latest=LEASE_DURATION)  # a late one takes longer, and its tasks stay its own
        totals = finished(executor, crowds, workers * SLOTS)
        starts = [start for crowd in crowds for start in crowd.ask("starts", after=moment)]
    times = Counter(key for key, _, _ in starts)
    lost = workers * SLOTS - totals["ended"]
    doubled = len(times.keys() - killed) + sum(count > 1 for count in times.values()) + totals["ended_twice"]
    what = f"{CROWDS * dying} of {workers:,} workers die at once, until their {len(killed):,} tasks run elsewhere"
    reached = at_most(took, MOST_DEATH) if lost == doubled == totals["failed"] == 0 else 0.0
    told = f"{took:.1f} s, lost {lost}, doubled {doubled}"
    return Measured([Row(f"{what}: {place.name}", told, "", "", f"{MOST_DEATH:g} s, 0, 0", reached)])


def finished(executor: Player, crowds: Sequence[Player], count: int) -> dict[str, int]:
    """End all tasks, and return the executor's totals."""
    deadline = time.monotonic() + DEATH_TIMEOUT
    totals: dict[str, int] = {"ended": 0}
    while totals["ended"] < count and time.monotonic() < deadline:
        for crowd in crowds:
            crowd.ask("finish", count=count)
        time.sleep(1.0)
        totals = executor.ask("totals")
    return totals
