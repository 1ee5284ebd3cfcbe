"""Measure our Airflow executor beside the incumbent, both driven as the scheduler drives them, in the same environment.

trigger  5,000 workloads to Redis and RabbitMQ          adopt      5,000 task instances of a dead scheduler
sync     10,000 running, 10 changes at each heartbeat   black hole the broker swallows every packet, for 30 s
import   the executor's module, beside BaseExecutor's
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

from tests.support.proxy import Proxy

from bench.backends import Backend
from bench.brokers import Broker
from bench.player import INCUMBENTS, ROOT, Cost, Player, players
from bench.scheduler import TIMEOUT
from bench.table import Row, at_least, at_most

TRIGGERED = 5_000
PASSES = 3  # of ours in each round: one takes a tenth of the incumbent's time
LEAST_ROUNDS = 3  # also in a quick run: one round scatters by a third
OUT = 10_000
ADOPTED = 5_000  # tasks: with results in a database the incumbent needs half a minute for them
CHANGES = 10
HEARTBEATS = 20  # heartbeats, a second apart
SETTLING = 12  # heartbeats until the reads of the reconcile are spread evenly
HOLE = 30.0  # seconds
AIRFLOWS_TIMEOUT = "1"  # seconds: the default of its operation_timeout
NEW_TASKS = 5  # at each heartbeat into a black hole
POLL_INTERVAL = 0.2  # seconds
IMPORTS = 5

BARE = "from airflow.executors.base_executor import BaseExecutor"
OURS = "from celeriac.airflow import CeleryExecutor"


def scheduler(new: Callable[..., Player], kind: str, broker: str, backend: str, *options: str) -> Player:
    """Start one. The options are Airflow's `sync_parallelism` and `operation_timeout`."""
    return new(INCUMBENTS, "bench.scheduler", kind, broker, backend, *(options or ("1",)))


def trigger(broker: Broker, database: str, rounds: int, least: float) -> list[Row]:
    with players() as new:
        parties = {
            "ours": scheduler(new, "ours", broker.url, database),
            "one process": scheduler(new, "incumbent", broker.url, database),
            "pool of 2": scheduler(new, "incumbent", broker.url, database, "2"),
        }
        for name, player in parties.items():
            player.ask("publish", count=100, batch=100, prefix="warm-")
            if name == "ours":
                one_pass(player, broker)
        walls: dict[str, list[float]] = {name: [] for name in parties}
        for _ in range(max(rounds, LEAST_ROUNDS)):
            for name, player in parties.items():
                passes = PASSES if name == "ours" else 1
                walls[name].append(statistics.median(one_pass(player, broker) for _ in range(passes)))
    theirs = min(("one process", "pool of 2"), key=lambda name: statistics.median(walls[name]))
    ratios = [rival / mine for mine, rival in zip(walls["ours"], walls[theirs], strict=True)]
    ratio = statistics.median(ratios)
    mine, rival = (TRIGGERED / statistics.median(walls[name]) for name in ("ours", theirs))
    what = (
        f"Airflow: queue and trigger {TRIGGERED:,} workloads, {broker.name}, against the incumbent ({theirs}),"
        f" operation_timeout {TIMEOUT} s"
    )
    scatter = ", ".join(f"{one:.1f}" for one in ratios)
    return [
        Row(
            what,
            f"{mine:,.0f}/s",
            f"{rival:,.0f}/s",
            f"{ratio:.1f}x ({scatter})",
            f"{least:g}x",
            at_least(ratio, least),
        )
    ]


def one_pass(player: Player, broker: Broker) -> float:
    """Return the seconds for one batch on an empty broker."""
    broker.clear()
    cost: Cost = player.ask("publish", count=TRIGGERED, batch=TRIGGERED, prefix="out-")
    return cost["wall"]


def sync(backend: Backend, rounds: int) -> list[Row]:
    with players() as new:
        costs = {
            kind: cost_of_sync(scheduler(new, kind, backend.broker, backend.url), backend, beats)
            for kind, beats in (("incumbent", rounds), ("ours", HEARTBEATS))
        }
    ratio = costs["incumbent"] / costs["ours"]
    what = f"Airflow: sync, {OUT:,} running, {CHANGES} changes, mean of heartbeats a second apart, {backend.name}: CPU"
    mine, rival = (f"{costs[kind] * 1e3:,.2f} ms" for kind in ("ours", "incumbent"))
    return [Row(what, mine, rival, f"{ratio:.0f}x", "50x", at_least(ratio, 50))]


def cost_of_sync(player: Player, backend: Backend, beats: int) -> float:
    player.ask("versions")
    backend.clear()
    backend.learn(lambda **facts: player.ask("store", **facts))
    player.ask("put_out", count=OUT, prefix="out-")
    backend.fill([f"out-{n}" for n in range(OUT)])
    backend.change(["out-0"])
    events, until = 0, time.monotonic() + 60
    while not events and time.monotonic() < until:
        time.sleep(1)
        events += player.ask("sync")["events"]
    for _ in range(SETTLING):
        time.sleep(1)
        player.ask("sync")
    cpu = 0.0
    for beat in range(beats):
        backend.change([f"out-{1 + beat * CHANGES + n}" for n in range(CHANGES)])
        time.sleep(1)
        cost = player.ask("sync")
        events, cpu = events + cost["events"], cpu + cost["cpu"]
    if events < (beats - 1) * CHANGES:
        raise RuntimeError(f"{events} of {1 + beats * CHANGES} changes were seen")
    player.close()
    return cpu / beats


def adopt(backend: Backend) -> list[Row]:
    with players() as new:
        walls = {}
        for kind in ("incumbent", "ours"):
            player = scheduler(new, kind, backend.broker, backend.url)
            player.ask("versions")
            backend.clear()
            backend.learn(lambda player=player, **facts: player.ask("store", **facts))
            ids = player.ask("leave", count=ADOPTED)
            backend.fill(ids)
            player.ask("adopt", ids=ids[:100])
            walls[kind] = player.ask("adopt", ids=ids)["wall"]
            player.close()
    ratio = walls["incumbent"] / walls["ours"]
    mine, rival = (f"{walls[kind]:.2f} s" for kind in ("ours", "incumbent"))
    what = f"Airflow: adopt {ADOPTED:,} running tasks, results in {backend.name}"
    return [Row(what, mine, rival, f"{ratio:.1f}x", "10x", at_least(ratio, 10))]


def black_hole(port: int) -> list[Row]:
    with Proxy(port) as proxy, players() as new:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        options = ("1", AIRFLOWS_TIMEOUT)
        mine = beats_of(scheduler(new, "ours", url, url, *options), proxy)
        rival = beats_of(scheduler(new, "incumbent", url, f"redis://127.0.0.1:{port}/0", *options), proxy)
    what = (
        f"Airflow: mean heartbeat with {NEW_TASKS} new tasks, while the broker swallows every packet for {HOLE:.0f} s,"
        f" operation_timeout {AIRFLOWS_TIMEOUT} s"
    )
    ratio, mean = statistics.mean(rival) / statistics.mean(mine), statistics.mean(mine)
    return [Row(what, told(mine), told(rival), f"{ratio:.0f}x", "200 ms", at_most(mean, POLL_INTERVAL))]


def beats_of(player: Player, proxy: Proxy) -> list[float]:
    player.ask("heartbeat", count=NEW_TASKS, prefix="before-")
    proxy.swallow()
    began = time.monotonic()
    walls: list[float] = []
    while time.monotonic() - began < HOLE:
        walls.append(player.ask("heartbeat", count=NEW_TASKS, prefix=f"hole-{len(walls)}-")["wall"])
        time.sleep(max(0.0, 1.0 - walls[-1]))
    proxy.heal()
    player.close()
    return walls


def told(walls: list[float]) -> str:
    return f"{statistics.mean(walls) * 1e3:,.0f} ms of {len(walls)}, longest {max(walls) * 1e3:,.0f} ms"


def importing() -> list[Row]:
    walls = {program: statistics.median(import_time(program) for _ in range(IMPORTS)) for program in (BARE, OURS)}
    ratio = walls[OURS] / walls[BARE]
    what = "Airflow: import the executor, against BaseExecutor"
    return [
        Row(what, f"{walls[OURS]:.2f} s", f"{walls[BARE]:.2f} s", f"{ratio:.2f}x", "under 1.2x", at_most(ratio, 1.2))
    ]


def import_time(program: str) -> float:
    timed = f"import time; began = time.perf_counter(); {program}; print(time.perf_counter() - began)"
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "AIRFLOW_HOME": "/nonexistent"}
    done = subprocess.run([INCUMBENTS, "-c", timed], cwd=ROOT, env=environment, check=True, capture_output=True)
    return float(done.stdout.split()[-1])
