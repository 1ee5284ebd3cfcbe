"""Measure how the costs of an executor grow with workers and tasks: `make bench-scale` writes docs/scale.md.

simulated workers ─► leases, claims, starts, results ─► Redis, PostgreSQL ─► executors

scale-idle   an idle executor, and ten of them       ─► scale_idle
scale-polls  the polls of leases alone               ─► scale_leases
scale-death  many workers die at once                ─► scale_death
scale-costs  the cost of one task, of few and many   ─► scale_costs
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from redis import Redis
from tests.support.servers import RedisServer

from bench import cluster
from bench.crew import Place
from bench.curves import Curves, Measured, draw
from bench.scale_costs import STEPS
from bench.scale_death import death
from bench.scale_idle import idle, lease_polls
from bench.table import Row, at_most, machine, markdown

ROOT = Path(__file__).parent.parent
PAGE, PICTURES = ROOT / "docs/scale.md", ROOT / "docs/scale"
GENERATED = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)
FEW = 10_000  # tasks; so few are measured three times
MOST_GROWTH = 1.3  # of the cost of a task among the fewest


def numbers(_: object, __: object, value: str) -> tuple[int, ...]:
    return tuple(int(number) for number in value.split(","))


@click.command()
@click.option("--workers", default="10,100,300,1000", callback=numbers, show_default=True)
@click.option("--in-flight", default=100_000, show_default=True, help="Tasks in flight beside the idle executor.")
@click.option("--seconds", default=30.0, show_default=True, help="Seconds for which an executor is idle.")
@click.option("--postgres-workers", default=200, show_default=True, help="Workers of which some die, on PostgreSQL.")
@click.option("--sizes", default="10000,100000,1000000", callback=numbers, show_default=True)
@click.option("--write", is_flag=True, help="Write docs/scale.md and its pictures.")
@click.argument("chosen", nargs=-1)
def main(
    workers: tuple[int, ...],
    in_flight: int,
    seconds: float,
    postgres_workers: int,
    sizes: tuple[int, ...],
    write: bool,
    chosen: tuple[str, ...],
) -> None:
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    with cluster.Servers() as servers:
        redis = Place("Redis", servers.redis.url, servers.redis.url)
        postgres = Place("PostgreSQL", servers.redis.url, servers.postgres.url)

        def measure(name: str) -> Measured:
            """Measure a part. One that fails costs no figure of the others."""
            with Redis.from_url(servers.redis.url) as client:
                client.flushall()
            began = time.monotonic()
            try:
                return parts[name]()
            except Exception:  # noqa: BLE001 - whatever went wrong there is shown
                traceback.print_exc()
                return Measured([Row(name, "", "FAILED", "", "to be measured", None)])
            finally:
                print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)

        parts: dict[str, Callable[[], Measured]] = {
            "scale-polls": lambda: lease_polls([redis, postgres], workers),
            "scale-idle": lambda: idle(redis, workers, in_flight, seconds),
            "scale-death-redis": lambda: death(redis, max(workers)),
            "scale-death-postgresql": lambda: death(postgres, postgres_workers, renewers=4),
            "scale-costs": lambda: costs(servers.redis, sizes),
        }
        if unknown := set(chosen) - parts.keys():
            raise click.UsageError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
        here = machine([*cluster.versions(servers), load])
        rows: list[Row] = []
        pictures: dict[str, Curves] = {}
        for name in chosen or parts:
            measured = measure(name)
            rows += measured.rows
            pictures |= measured.curves
            if write:  # also if a later part is interrupted
                write_page(here, rows, pictures)
    print(f"{here}\n\n{markdown(rows)}\n")


def write_page(here: str, rows: Sequence[Row], pictures: dict[str, Curves]) -> None:
    """Write the figures into docs/scale.md, and draw the curves beside it."""
    PICTURES.mkdir(exist_ok=True)
    for name, curves in pictures.items():
        (PICTURES / f"{name}.svg").write_text(draw(curves))
    date = datetime.datetime.now(tz=datetime.UTC).date()
    shown = "\n".join(f"![{curves.title}](scale/{name}.svg)\n" for name, curves in pictures.items())
    figures = f"One run, on {date}: {here}.\n\n{markdown(rows)}\n\n{shown}"
    PAGE.write_text(GENERATED.sub(lambda found: found[1] + figures + found[2], PAGE.read_text()))


def costs(server: RedisServer, sizes: Sequence[int]) -> Measured:
    """Measure the CPU of one task in each step, for each number of tasks."""
    measured = Measured()
    lines: dict[str, list[tuple[float, float]]] = {}
    for step in STEPS:
        lines[step] = [(float(size), cost_of_step(step, size, server)) for size in sizes]
        growth = lines[step][-1][1] / lines[step][0][1]
        measured.rows.append(
            Row(
                f"CPU of one of {sizes[-1]:,} tasks: {step}",
                f"{lines[step][-1][1] * 1e6:.1f} µs",
                f"of one of {sizes[0]:,}: {lines[step][0][1] * 1e6:.1f} µs",
                f"{growth:.2f}",
                f"{MOST_GROWTH:g}",
                at_most(growth, MOST_GROWTH),
            )
        )
    micro = {step: [(size, cost * 1e6) for size, cost in line] for step, line in lines.items()}
    measured.curves["costs"] = Curves("CPU of one task, µs", "tasks", micro)
    return measured


def cost_of_step(step: str, size: int, server: RedisServer) -> float:
    """Return the CPU seconds of one task: of few tasks the least of three runs."""
    return min(one_cost(step, size, server) for _ in range(3 if size <= FEW else 1))


def one_cost(step: str, size: int, server: RedisServer) -> float:
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder, Redis.from_url(server.url) as client:
        client.flushall()
        words = [step, str(size), server.url, f"sqlite:///{folder}/ledger.db"]
        ended = subprocess.run(
            [sys.executable, "-m", "bench.scale_costs", *words], check=False, capture_output=True, text=True
        )
    if ended.returncode:
        raise RuntimeError(f"{step} of {size:,} tasks failed:\n{ended.stderr[-2000:]}")
    return float(ended.stdout)


if __name__ == "__main__":
    main()
