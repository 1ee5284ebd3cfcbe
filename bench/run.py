"""Measure each published figure beside a rival's in the same run, and print one Markdown table: `make bench`.

`make bench-quick` measures the parts that a user asks for first, once, and ends with status 1 if a figure falls below
half of its bar.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from bench import alone, cluster
from bench.table import Row, markdown

QUICK = (
    "help",
    "short-commands",
    "large-file",
    "publish-redis",
    "sync-redis",
    "end-to-end",
    "claims-redis",
    "worker-death-redis",
    "ledger-cost",
    "airflow-trigger-redis",
)
LEAST_SHARE = 0.5  # of its bar, that a figure must reach in a quick run


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Rounds in which the parties on servers alternate.")
@click.option(
    "--sizes", default="10000,100000", show_default=True, help="How many tasks are out while sync is measured."
)
@click.option("--quick", is_flag=True, help="Measure ten parts in one round; fail below half of a bar.")
@click.option("--output", type=click.Path(path_type=Path), help="A file that gets the table too.")
@click.argument("chosen", nargs=-1)
def main(rounds: int, sizes: str, quick: bool, output: Path | None, chosen: tuple[str, ...]) -> None:
    if quick:
        rounds, sizes, chosen = 1, "10000", chosen or QUICK
    heading = [f"load {os.getloadavg()[0]:.1f} at the start"]
    with cluster.Servers() as servers:
        on_servers = cluster.parts(servers, rounds, [int(size) for size in sizes.split(",")])
        parts = alone.parts(rounds) | on_servers
        if unknown := set(chosen) - parts.keys():
            raise click.UsageError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
        if not chosen or on_servers.keys() & set(chosen):
            heading = [*cluster.versions(servers), *heading]
        rows: list[Row] = []
        for name in chosen or parts:
            began = time.monotonic()
            rows += parts[name]()
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    table = markdown(rows, heading)
    print(table)
    if output is not None:
        output.write_text(table + "\n")
    if quick and (low := [row for row in rows if row.bar and (row.reached or 0.0) < LEAST_SHARE]):
        print("\n".join(f"below half of its bar, or not measured: {row.what}" for row in low), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
