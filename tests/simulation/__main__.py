"""Run histories: python -m tests.simulation --help."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import click

from tests.simulation.changes import CHANGES, NAMES
from tests.simulation.decisions import report
from tests.simulation.runner import Found, How, Totals, enter, run_in_processes, run_one

REAL_CLOCK = time.perf_counter


@click.command()
@click.option("--seeds", default="1..1000", help="FIRST..LAST, or single seeds: 1..60,211.")
@click.option("--faults", help="Cause only these faults of the seed, such as 0,3; with --story.")
@click.option("--story", is_flag=True, help="Print the story of each history, not only of those with a violation.")
@click.option("--until-violation", is_flag=True, help="Stop at the first violation.")
@click.option("--shrink/--no-shrink", default=True, help="Leave out the faults without which a violation remains.")
@click.option("--processes", type=int, default=os.cpu_count(), help="How many processes run histories.")
@click.option("--decisions", is_flag=True, help="Tell which branches of the decisions were taken. Slow.")
@click.option("--change", type=click.Choice(NAMES), help="Change the code so that it breaks the protocol.")
def main(
    seeds: str,
    faults: str | None,
    story: bool,
    until_violation: bool,
    shrink: bool,
    processes: int,
    decisions: bool,
    change: str | None,
) -> None:
    """Run one history for each seed. Exit with 1 if an invariant did not hold.

    With PYTHONHASHSEED=0, a seed makes the same history each time.
    """
    if os.environ.get("PYTHONHASHSEED") != "0":
        raise click.UsageError("set PYTHONHASHSEED=0: otherwise a seed makes another history each time")
    chosen = chosen_seeds(seeds)
    if change is not None:
        print(f"{change}: {CHANGES[change].breaks}")
    if story:
        sys.exit(tell(chosen, faults, change))
    began, totals = REAL_CLOCK(), Totals()
    how = How(change, until_violation, shrink, decisions)
    for part in run_in_processes(chosen, processes, how):
        totals.add(part)
        for found in part.found:
            print(words_of(found), flush=True)
    if decisions:
        print("\n".join(report(totals.arcs)))
    print(totals.words(REAL_CLOCK() - began))
    if totals.found:
        sys.exit(f"{len(totals.found)} histories violate an invariant")


def chosen_seeds(text: str) -> list[int]:
    """Return the seeds of a text such as 1..60,211."""
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("..")
        chosen += range(int(first), int(last or first) + 1)
    return chosen


def tell(seeds: Sequence[int], faults: str | None, change: str | None) -> int:
    """Print the stories of some seeds. Return the exit status."""
    enter(How(change))
    only_faults = None if faults is None else [int(number) for number in faults.split(",") if number]
    status = 0
    for seed in seeds:
        history, violation = run_one(seed, only_faults)
        print("\n".join(history.story))
        status |= violation is not None
    return status


def words_of(found: Found) -> str:
    numbers = ",".join(map(str, found.faults))
    which = f"{len(found.faults)} of its {found.planned} faults are needed: --seeds {found.seed} --faults '{numbers}'"
    return "\n".join([*found.story, f"{found.problem}; {which}"])


if __name__ == "__main__":
    main()
