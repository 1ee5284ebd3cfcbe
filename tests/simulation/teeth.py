"""Try each change of the code that breaks the protocol: python -m tests.simulation.teeth --help."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import click

from tests.simulation.changes import NAMES, changed
from tests.simulation.history import simulation
from tests.simulation.runner import PART, run_one

REAL_CPU = time.process_time


@dataclass
class Attempt:
    """The result of one change."""

    name: str
    seed: int | None
    """The first seed that finds it; None if none did."""

    problem: str
    cpu_seconds: float


def try_changes(names: Collection[str], seeds: range) -> Iterator[Attempt]:
    """Run the histories of some seeds with each change, until one of them violates an invariant."""
    gc.disable()  # what a collection ends, in the middle of a history, changes it
    with simulation():
        for name in names:
            with changed(name):
                yield try_change(name, seeds)


def try_change(name: str, seeds: range) -> Attempt:
    began = REAL_CPU()
    for seed in seeds:
        if seed % PART == 0:
            gc.collect()
        _, violation = run_one(seed)
        if violation is not None:
            return Attempt(name, seed, str(violation), REAL_CPU() - began)
    return Attempt(name, None, "not found", REAL_CPU() - began)


@click.command()
@click.option("--seeds", default="1..1000", help="FIRST..LAST.")
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
def main(seeds: str, names: tuple[str, ...]) -> None:
    """Try all changes, or those of the NAMES. Exit with 1 if one was not found."""
    first, _, last = seeds.partition("..")
    missed = 0
    for attempt in try_changes(names or NAMES, range(int(first), int(last) + 1)):
        missed += attempt.seed is None
        print(f"{attempt.name:24} {attempt.seed or '-':>6} {attempt.cpu_seconds:6.1f} s  {attempt.problem}", flush=True)
    if missed:
        sys.exit(f"{missed} changes were not found")


if __name__ == "__main__":
    main()
