"""Measure each published figure beside a rival's in the same run, and print one Markdown table: `make bench`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from bench import alone, cluster
from bench.table import Row, markdown


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Rounds in which the parties on servers alternate.")
@click.option(
    "--sizes", default="10000,100000", show_default=True, help="How many tasks are out while sync is measured."
)
@click.option("--output", type=click.Path(path_type=Path), help="A file that gets the table too.")
@click.argument("chosen", nargs=-1)
def main(rounds: int, sizes: str, output: Path | None, chosen: tuple[str, ...]) -> None:
    heading = [f"load {os.getloadavg()[0]:.1f} at the start"]
    with cluster.Servers() as servers:
        on_servers = cluster.parts(servers, rounds, [int(size) for size in sizes.split(",")])
        parts = alone.PARTS | on_servers
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


if __name__ == "__main__":
    main()
