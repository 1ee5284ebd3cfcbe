"""Measure the cost of signing: the same batches signed and unsigned, in turns on an empty broker."""

from __future__ import annotations

import statistics

from bench.brokers import Broker
from bench.player import OURS, Cost, players
from bench.publishing import BATCH, COUNT
from bench.table import Row, at_most

PASSES = 3  # in each round
MOST = 5.0  # µs of CPU for each message


def signing(broker: Broker, rounds: int) -> list[Row]:
    with players() as new:
        ours = new(OURS, "bench.ours", broker.url, "rpc://")

        def publish(signed: bool) -> Cost:
            broker.clear()
            cost: Cost = ours.ask("publish", count=COUNT, batch=BATCH, signed=signed)
            return cost

        for signed in (True, False):
            publish(signed)
        pairs = [(publish(True), publish(False)) for _ in range(rounds * PASSES)]
    more = [(signed["cpu"] - plain["cpu"]) / COUNT * 1e6 for signed, plain in pairs]
    told = [f"{COUNT / statistics.median(pair[side]['wall'] for pair in pairs):,.0f}/s" for side in (0, 1)]
    cost = statistics.median(more)
    scatter = f"{cost:.1f} µs CPU more ({min(more):.1f} to {max(more):.1f})"
    what = f"publish {COUNT:,} × 1 KB, {broker.name}: signed"
    return [Row(what, told[0], f"not signed: {told[1]}", scatter, f"{MOST:g} µs", at_most(cost, MOST))]
