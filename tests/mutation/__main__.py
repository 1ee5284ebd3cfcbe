"""Try mutants: python -m tests.mutation --help."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import click
import pytest

from tests.mutation.judge import Judge
from tests.mutation.mutants import UNCHANGED, Mutant, all_mutants, sample

UNITS = (
    "circuit_breaker core dependencies drain_tracker failure_detector futures lease_manager lease_monitor ledger_codec"
    " lost_task_detector owner_session ownership pending_revokes priority_queue progress release_claim resource_room"
    " shared_places sinks start_gate stored_values surviving_loop taken_places telemetry trace_context worker_monitor"
    " worker_registry priority_queue_steps executor_parts"
)
"""Those of `tests/unit` that reach the executor or the claims."""

TESTS = (
    *(f"tests/unit/test_{name}.py" for name in UNITS.split()),
    *("tests/executor", "tests/contract/test_claims.py", "tests/contract/test_malformed_values.py"),
    *("tests/contract/test_database_claims.py", "tests/contract/test_redis_claims.py"),
    *("tests/contract/test_ledgers.py", "tests/contract/test_places.py"),
)
PYTEST_OPTIONS = (
    *("-q", "-n", "0", "--tb", "native", "-p", "no:cacheprovider"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # the simulation is imported before pytest begins
)
SURVIVES = ("survived", "not reached")


@click.command()
@click.option("--sample", "size", default=700, help="How many mutants; 0 for all.")
@click.option("--seed", default=1, help="Chooses the sample.")
@click.option("--histories", default=100, help="How many histories of the simulation may judge a mutant.")
@click.option("--only", default="", help="Only mutants whose name has this.")
@click.option("--again", type=click.Path(exists=True, path_type=Path), help="Only the survivors in a file of verdicts.")
@click.option("--output", type=click.Path(path_type=Path), default="mutants.jsonl", help="Verdicts, a line for each.")
@click.option("--control", is_flag=True, help="Change nothing: no mutant may be killed then.")
@click.option("--processes", default=1, help="How many mutants are judged at once.")
def main(
    size: int,
    seed: int,
    histories: int,
    only: str,
    again: Path | None,
    output: Path,
    control: bool,
    processes: int,
) -> None:
    """Judge a sample of the mutants, and print the survivors."""
    chosen = sample(all_mutants(), size, seed)
    if again is not None:
        lines = map(json.loads, again.read_text().splitlines())
        names = {line["mutant"] for line in lines if line["verdict"] in SURVIVES}
        chosen = [mutant for mutant in chosen if mutant.name in names]
    chosen = [mutant for mutant in chosen if only in mutant.name]
    if control:
        chosen = [mutant._replace(mutation=mutant.mutation._replace(change=UNCHANGED)) for mutant in chosen]
    verdicts: list[tuple[Mutant, str]] = []
    with output.open("w") as file:

        def note(mutant: Mutant, verdict: str) -> None:
            verdicts.append((mutant, verdict))
            line = {"mutant": mutant.name, "place": mutant.place, "change": mutant.mutation.change, "verdict": verdict}
            print(json.dumps({**line, "at": round(time.time())}, ensure_ascii=False), file=file, flush=True)

        judge = Judge(chosen, histories=histories, processes=processes, on_verdict=note)
        pytest.main([*PYTEST_OPTIONS, *TESTS], [judge])
    report(verdicts)


def report(verdicts: list[tuple[Mutant, str]]) -> None:
    """Print how many of each module were killed, and the survivors."""
    by_module: dict[str, Counter[str]] = {}
    for mutant, verdict in verdicts:
        by_module.setdefault(mutant.module, Counter())[verdict] += 1
        if verdict in SURVIVES:
            print(f"{mutant.place} {mutant.mutation.function}: {mutant.mutation.change} ({verdict})")
    total = sum(by_module.values(), Counter[str]())
    for module, counts in [*sorted(by_module.items()), ("all", total)]:
        killed = counts["killed"] + counts["timeout"]
        print(f"{module:40} {killed:5} of {counts.total():5} killed: {killed / counts.total():.1%}")


if __name__ == "__main__":
    sys.exit(main())
