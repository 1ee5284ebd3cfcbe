"""Measure each published figure beside a rival's in the same run, and print one Markdown table: `make bench`.

`make bench-quick` measures the parts that a user asks for first. A part with a figure below half of its bar is measured
once more, because the machine may be busy. If the figure is below half again, the run ends with status 1.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from bench import alone, cluster, page
from bench.table import Row, machine, markdown

SECTIONS = {
    "One machine": ("start", "help", "short-commands", "taking", "memory", "reading", "large-file"),
    "On servers": (
        "publish-redis",
        "publish-rabbitmq",
        "signing-redis",
        "signing-rabbitmq",
        "sync-redis",
        "sync-postgresql",
        "end-to-end",
        "remote-output",
    ),
    "Claims, leases and revoking": (
        "claims-redis",
        "claims-rabbitmq",
        "claims-no-ops",
        "limits-redis",
        "limits-rabbitmq",
        "lease-writes-redis",
        "lease-writes-postgresql",
        "worker-death-redis",
        "worker-death-rabbitmq",
        "worker-going-redis",
        "worker-going-rabbitmq",
        "takeover",
        "cancel-redis",
        "cancel-rabbitmq",
    ),
    "The ledger": ("ledger-cost", "ledger-million", "ledger-recovery"),
    "As Airflow's executor": (
        "airflow-trigger-redis",
        "airflow-trigger-rabbitmq",
        "airflow-sync-redis",
        "airflow-sync-postgresql",
        "airflow-adopt-redis",
        "airflow-adopt-postgresql",
        "airflow-black-hole",
        "airflow-import",
        "airflow-worker",
    ),
    "Metrics and pages": ("telemetry",),
}
"""The parts by the heading of their figures in the page."""

HEADLINES = {
    "short-commands": 2,
    "publish-redis": 1,
    "publish-rabbitmq": 1,
    "sync-redis": 1,
    "worker-death-redis": 1,
    "airflow-trigger-redis": 1,
}
"""How many rows of a part, from its first one, the README shows."""

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
    "--sizes", default="10000,100000", show_default=True, help="How many tasks are in flight while sync is measured."
)
@click.option("--quick", is_flag=True, help="Measure ten parts in one round; fail below half of a bar, twice.")
@click.option("--write", is_flag=True, help="Write docs/benchmarks.md and the short table of README.md: all parts.")
@click.option("--output", type=click.Path(path_type=Path), help="A file that gets the table too.")
@click.argument("chosen", nargs=-1)
def main(rounds: int, sizes: str, quick: bool, write: bool, output: Path | None, chosen: tuple[str, ...]) -> None:
    if quick:
        rounds, sizes, chosen = 1, "10000", chosen or QUICK
    if write and chosen:
        raise click.UsageError("--write needs all parts in one run")
    least = LEAST_SHARE if quick else 0.0
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    with cluster.Servers() as servers:
        parts = alone.parts(rounds) | cluster.parts(servers, rounds, [int(size) for size in sizes.split(",")])
        names = chosen or [name for section in SECTIONS.values() for name in section]
        if unknown := set(names) - parts.keys():
            raise click.UsageError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
        here = machine([*cluster.versions(servers), load])
        rows = {name: checked_rows(name, parts[name], least) for name in names}
    every = [row for part in rows.values() for row in part]
    table = f"{here}\n\n{markdown(every)}\n"
    print(table)
    if output is not None:
        output.write_text(table)
    if write:
        sections = {heading: [row for name in part for row in rows[name]] for heading, part in SECTIONS.items()}
        page.write(sections, [row for name, count in HEADLINES.items() for row in rows[name][:count]], here)
    if low := [row.what for row in every if row.is_below(least)]:
        print("\n".join(f"below {least:g} of its bar, or not measured: {what}" for what in low), file=sys.stderr)
        raise SystemExit(1)


def checked_rows(name: str, measure: Callable[[], list[Row]], least: float) -> list[Row]:
    """Measure a part. If a figure is below `least` of its bar, measure it once more, and take the second one."""
    rows = rows_of(name, measure)
    low = [row.what for row in rows if row.is_below(least)]
    if not low or not least:
        return rows
    print("\n".join(f"below {least:g} of its bar, measured once more: {what}" for what in low), file=sys.stderr)
    again = [replace(row, what=f"{row.what} (measured twice)") for row in rows_of(name, measure)]
    if len(again) != len(rows):
        return again
    return [second if first.is_below(least) else first for first, second in zip(rows, again, strict=True)]


def rows_of(name: str, measure: Callable[[], list[Row]]) -> list[Row]:
    """Measure a part. One that fails costs no figure of the others."""
    began = time.monotonic()
    try:
        return measure()
    except Exception:  # noqa: BLE001 - whatever went wrong there is shown, and the run fails at its end
        traceback.print_exc()
        return [Row(name, "", "FAILED", "", "to be measured", None)]
    finally:
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
