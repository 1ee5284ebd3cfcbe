"""Measure 10,000 tasks of 1 KB, sent by one process in batches: ours, the incumbent at its best, and the raw limit.

Rounds alternate, so that other load on the machine affects all parties. A ratio is the median of all rounds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from bench.brokers import Broker
from bench.player import INCUMBENTS, OURS, Cost, Player, players
from bench.table import Row, at_least, at_most

COUNT, BATCH = 10_000, 1_000
PROBE = 5_000  # tasks for finding the incumbent's best setting
PASSES = 3  # of the quick parties in each round


@dataclass
class Party:
    """One publisher, and its cost in each round."""

    name: str
    publish: Callable[[], Cost]
    passes: int
    rounds: list[Cost]

    def rate(self) -> float:
        return COUNT / self.median("wall")

    def median(self, what: str) -> float:
        return statistics.median(cost[what] for cost in self.rounds)


def publishing(broker: Broker, database: str, rounds: int) -> list[Row]:
    with players() as new:
        incumbents = best_incumbent(broker, database, new)
        others = other_parties(broker, new)
        parties = [*{party.name: party for party in incumbents.values()}.values(), *others.values()]
        for number in range(rounds):
            for party in parties[:: 1 if number % 2 else -1]:
                party.rounds.append(one_round(broker, party))
    return [*rows(broker, incumbents, **others)]


def one_round(broker: Broker, party: Party) -> Cost:
    """Return the median of its passes, each on an empty broker."""
    costs = []
    for _ in range(party.passes):
        broker.clear()
        costs.append(party.publish())
    return {what: statistics.median(cost[what] for cost in costs) for what in ("wall", "cpu")}


def other_parties(broker: Broker, new: Callable[..., Player]) -> dict[str, Party]:
    """Start the other parties, connected and warm: each has published something."""
    ours = new(OURS, "bench.ours", broker.url, "rpc://")
    ours.ask("publish", count=BATCH, batch=BATCH)
    size = broker.message_size()
    raw = new(OURS, "bench.raw", broker.url)
    raw.ask("publish", count=BATCH, batch=BATCH, size=size)
    celery = new(OURS, "bench.rivals", "celery", broker.url)
    dramatiq = new(INCUMBENTS, "bench.rivals", "dramatiq", broker.url)
    for one in (celery, dramatiq):
        one.ask("publish", count=10)
    batches = {"count": COUNT, "batch": BATCH}
    parties = {
        "ours": Party("ours", partial(ours.ask, "publish", **batches), PASSES, []),
        "raw": Party("raw", partial(raw.ask, "publish", **batches, size=size), PASSES, []),
        "executor": Party("executor", partial(ours.ask, "publish_as_executor", **batches), PASSES, []),
        "celery": Party("celery", partial(celery.ask, "publish", count=COUNT), 1, []),
        "dramatiq": Party("dramatiq", partial(dramatiq.ask, "publish", count=COUNT), 1, []),
    }
    if broker.name == "RabbitMQ":
        raw.ask("publish_ready", **batches)
        parties["ready"] = Party("ready", partial(raw.ask, "publish_ready", **batches), PASSES, [])
    return parties


def best_incumbent(broker: Broker, database: str, new: Callable[..., Player]) -> dict[str, Party]:
    """Return its best setting by "wall" and by "cpu". It makes a pool for each batch, so one batch is best."""
    settings = {
        "one process, batches of 1,000": (database, "1", BATCH),
        "one process, one batch": (database, "1", COUNT),
        "pool of 2, one batch": (database, "2", COUNT),
        "pool of 4, one batch": (database, "4", COUNT),
    }
    if broker.name == "Redis":
        settings["one process, results on Redis"] = (broker.url, "1", COUNT)
    started = {
        key: new(INCUMBENTS, "bench.scheduler", "incumbent", broker.url, *key)
        for key in {s[:2] for s in settings.values()}
    }
    probes: dict[str, Cost] = {}
    parties: dict[str, Party] = {}
    for name, (backend, parallelism, batch) in settings.items():
        publish = partial(started[backend, parallelism].ask, "publish", batch=batch)
        publish(count=100, prefix="warm-")
        broker.clear()
        probes[name] = publish(count=PROBE, prefix="probe-")
        parties[name] = Party(name, partial(publish, count=COUNT, prefix="out-"), 1, [])
    for name, cost in probes.items():
        print(
            f"the incumbent on {broker.name}, {name}: {PROBE / cost['wall']:,.0f}/s,"
            f" {cost['cpu'] / PROBE * 1e6:,.0f} µs CPU",
            file=sys.stderr,
        )
    return {by: parties[min(probes, key=lambda name: probes[name][by])] for by in ("wall", "cpu")}


def rows(
    broker: Broker,
    incumbents: dict[str, Party],
    *,
    ours: Party,
    raw: Party,
    executor: Party,
    celery: Party,
    dramatiq: Party,
    ready: Party | None = None,
) -> Iterator[Row]:
    bars, quickest, thriftiest = broker.bars, incumbents["wall"], incumbents["cpu"]
    confirmed = ", confirmed" if broker.name == "RabbitMQ" else ""
    what = f"publish {COUNT:,} × 1 KB, {broker.name}{confirmed}"
    yield compared(f"{what}: rate, against the incumbent ({quickest.name})", ours, quickest, "wall", bars.incumbent)
    yield compared(f"{what}: CPU, against the incumbent ({thriftiest.name})", ours, thriftiest, "cpu", bars.cpu)
    yield compared(f"{what}: rate, against the client's raw limit", ours, raw, "wall", bars.raw)
    if ready is not None:
        yield compared(f"{what}: rate, against ready frames of the same messages", ours, ready, "wall")
    whole = compared(
        f"{what}: rate with queue_task and trigger_tasks, against the incumbent", executor, quickest, "wall"
    )
    if (seconds := bars.executor) is not None:
        reached = at_most(executor.median("wall") / COUNT, seconds)
        whole = replace(whole, bar=f"{seconds * 1e6:.0f} µs a task", reached=reached)
    yield whole
    yield compared(f"{what}: rate, against plain Celery's apply_async", ours, celery, "wall")
    yield compared(f"{what}: rate, against Dramatiq", ours, dramatiq, "wall")


def compared(what: str, ours: Party, rival: Party, by: str, least: float | None = None) -> Row:
    ratios = [theirs[by] / mine[by] for mine, theirs in zip(ours.rounds, rival.rounds, strict=True)]
    ratio = statistics.median(ratios)
    scatter = f"{word(ratio)} ({', '.join(word(one) for one in ratios)})"
    if least is None:
        return Row(what, told(ours), told(rival), scatter, "", None)
    return Row(what, told(ours), told(rival), scatter, word(least), at_least(ratio, least))


def word(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.0%}"


def told(party: Party) -> str:
    each = {what: party.median(what) / COUNT * 1e6 for what in ("wall", "cpu")}
    return f"{party.rate():,.0f}/s, {each['wall']:.0f} µs, {each['cpu']:.0f} µs CPU"
