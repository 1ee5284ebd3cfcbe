"""Run the histories of many seeds in several processes, and shrink those with a violation."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.simulation import decisions
from tests.simulation.changes import changed
from tests.simulation.history import History, Violation, planned_faults, run_history, simulation

PART = 25  # seeds that a process runs in one go
entered = ExitStack()
"""What this process has put in the place of clocks and threads, until it ends."""


@dataclass(frozen=True)
class How:
    """How histories are run."""

    change: str | None = None
    until_violation: bool = False
    shrinks: bool = True
    traces: bool = False
    """Whether the decisions that they take are reported."""


@dataclass
class Found:
    """A history with a violation, with as few faults as show it."""

    seed: int
    faults: list[int]
    planned: int
    problem: str
    story: list[str]


@dataclass
class Totals:
    """Count what all histories had."""

    histories: int = 0
    steps: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    cpu_seconds: float = 0.0
    found: list[Found] = field(default_factory=list)
    arcs: set[decisions.Arc] = field(default_factory=set)

    def add_history(self, history: History) -> None:
        self.histories += 1
        self.steps += history.world.steps
        self.seconds += history.world.now
        self.faults += history.faults

    def add(self, other: Totals) -> None:
        self.histories += other.histories
        self.steps += other.steps
        self.seconds += other.seconds
        self.faults += other.faults
        self.cpu_seconds += other.cpu_seconds
        self.found += other.found
        self.arcs |= other.arcs

    def words(self, took: float) -> str:
        return (
            f"{self.histories:,} histories, {self.faults.total():,} faults, {self.steps:,} steps,"
            f" {self.seconds / 3600:,.1f} simulated hours in {took:.1f} s and {self.cpu_seconds:.1f} s of CPU:"
            f" {self.seconds / max(took, 0.001):,.0f} simulated seconds a second"
        )


def enter(how: How) -> None:
    """Make this process one that runs histories."""
    decisions.is_on = how.traces
    gc.collect()
    gc.freeze()  # all that is imported stays
    gc.disable()  # a history leaves little: it is collected after it
    entered.enter_context(simulation())
    entered.enter_context(changed(how.change))


def run_one(seed: int, only_faults: list[int] | None = None) -> tuple[History, Violation | None]:
    """Run one history. Return it with its violation, if there is one."""
    try:
        return run_history(seed, only_faults), None
    except Violation as violation:
        return violation.history, violation


def run_seeds(seeds: Sequence[int], how: How) -> Totals:
    """Run a part of the histories, in a process that has entered the simulation."""
    totals, began = Totals(), time.process_time()
    for seed in seeds:
        history, violation = run_one(seed)
        totals.add_history(history)
        if violation is not None:
            totals.found.append(shrink(seed) if how.shrinks else found_in(seed, None, history, violation))
            if how.until_violation:
                break
        gc.collect()  # after each history: its memory is still in the processor's cache
    totals.cpu_seconds = time.process_time() - began
    sys.settrace(None)
    gc.freeze()  # some objects of histories stay for ever: the next collection does not look at them again
    totals.arcs, decisions.arcs = decisions.arcs, set()
    return totals


def shrink(seed: int) -> Found:
    """Leave out one fault after the other for as long as a violation remains."""
    faults = list(range(len(planned_faults(seed))))
    for number in reversed(faults.copy()):
        fewer = [other for other in faults if other != number]
        if run_one(seed, fewer)[1] is not None:
            faults = fewer
    history, violation = run_one(seed, faults)
    assert violation is not None, f"seed {seed} does not make the same history each time"
    return found_in(seed, faults, history, violation)


def found_in(seed: int, faults: list[int] | None, history: History, violation: Violation) -> Found:
    planned = len(planned_faults(seed))
    story = list(history.story)
    if violation.__cause__ is not None:
        story += traceback.format_exception(violation.__cause__)
    return Found(seed, list(range(planned)) if faults is None else faults, planned, str(violation), story)


def run_in_processes(seeds: Sequence[int], processes: int, how: How) -> Iterator[Totals]:
    """Yield what each part of the seeds had."""
    chunks = [seeds[start : start + PART] for start in range(0, len(seeds), PART)]
    for totals in run_here(chunks, how) if processes == 1 else run_elsewhere(chunks, processes, how):
        yield totals
        if totals.found and how.until_violation:
            return


def run_here(chunks: list[Sequence[int]], how: How) -> Iterator[Totals]:
    with entered:
        enter(how)
        for chunk in chunks:
            yield run_seeds(chunk, how)


def run_elsewhere(chunks: list[Sequence[int]], processes: int, how: How) -> Iterator[Totals]:
    with ProcessPoolExecutor(processes, initializer=enter, initargs=(how,)) as pool:
        try:
            for part in as_completed([pool.submit(run_seeds, chunk, how) for chunk in chunks]):
                yield part.result()
        finally:
            pool.shutdown(cancel_futures=True)
