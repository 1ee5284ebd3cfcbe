"""Run histories: python -m tests.simulation --help."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import Counter

import click

from tests.simulation.changes import NAMES, changed
from tests.simulation.history import History, Violation, run_history, simulation

REAL_CLOCK = time.perf_counter


@click.command()
@click.option("--seeds", default="1..1000", help="FIRST..LAST, or one seed.")
@click.option("--story", is_flag=True, help="Print the story of each history, not only of those with a violation.")
@click.option("--until-violation", is_flag=True, help="Stop at the first violation.")
@click.option("--change", type=click.Choice(NAMES), help="Change the code so that it breaks the protocol.")
def main(seeds: str, story: bool, until_violation: bool, change: str | None) -> None:
    """Run one history for each seed. Exit with 1 if an invariant did not hold.

    With PYTHONHASHSEED=0, a seed makes the same history each time.
    """
    if os.environ.get("PYTHONHASHSEED") != "0":
        raise click.UsageError("set PYTHONHASHSEED=0: otherwise a seed makes another history each time")
    first, _, last = seeds.partition("..")
    began, failed, totals = REAL_CLOCK(), 0, Totals()
    with simulation(), changed(change):
        for seed in range(int(first), int(last or first) + 1):
            history, violation = run_one(seed)
            totals.add(history)
            failed += violation is not None
            if violation is not None or story:
                print("\n".join(history.story))
            if violation is not None:
                print(f"{violation}; faults: {', '.join(sorted(history.faults)) or 'none'}", flush=True)
                if violation.__cause__ is not None:
                    traceback.print_exception(violation.__cause__)
                if until_violation:
                    break
    print(totals.words(REAL_CLOCK() - began))
    if failed:
        sys.exit(f"{failed} histories violate an invariant")


def run_one(seed: int) -> tuple[History, Violation | None]:
    """Run one history. Return it with its violation, if there is one."""
    try:
        return run_history(seed), None
    except Violation as violation:
        return violation.history, violation


class Totals:
    """Count what all histories had."""

    def __init__(self) -> None:
        self._histories = self._steps = 0
        self._seconds = 0.0
        self._faults: Counter[str] = Counter()

    def add(self, history: History) -> None:
        self._histories += 1
        self._steps += history.world.steps
        self._seconds += history.world.now
        self._faults += history.faults

    def words(self, took: float) -> str:
        return (
            f"{self._histories:,} histories, {sum(self._faults.values()):,} faults, {self._steps:,} steps,"
            f" {self._seconds / 3600:,.1f} simulated hours in {took:.1f} s:"
            f" {self._seconds / took:,.0f} simulated seconds a second"
        )


if __name__ == "__main__":
    main()
