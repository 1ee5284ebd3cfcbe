"""Run the tests and the histories in a process of its own, without a mutant or with one."""

from __future__ import annotations

import logging
import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from tests.mutation import tracing
from tests.mutation.mutants import UNCHANGED, Mutant, make
from tests.simulation.history import Violation
from tests.simulation.runner import How, enter, run_one

CPU_LIMIT = 3.0  # seconds for a test or a history
WALL_LIMIT = 15.0  # seconds, for one that waits
WAITS_LONG, WAITS_MUCH = 1.0, 8  # seconds, and times the CPU time: a test that takes longer judges nothing
FACTOR = 10  # a test may take as many times longer than without a mutant
HISTORY_SECONDS = 0.1  # that a history takes at most, most often
MEMORY_LIMIT = 6 << 30  # bytes
SURVIVED, KILLED = 0, 1


class Baseline(Struct):
    """The tests and histories that pass without a mutant."""

    seconds: dict[str, float] = {}
    """CPU time of each test, by its id. One that fails, or waits long, is left out."""

    tests: dict[str, list[str]] = {}
    """The tests that reach each statement, the quickest first."""

    seeds: dict[str, list[int]] = {}
    """The histories that reach each statement."""


def begin(folder: Path) -> None:
    """Let this process be silent, and keep its files and its memory within limits."""
    os.setpgid(0, 0)
    silence = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(silence, number)
    own = folder / str(os.getpid())
    own.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = os.environ["PYTEST_DEBUG_TEMPROOT"] = str(own)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def limit(seconds: float) -> None:
    """End this process by a signal if it takes much longer than some seconds from now on."""
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT + FACTOR * seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL_LIMIT + FACTOR * seconds)


def be_silent(session: pytest.Session) -> None:
    session.config.pluginmanager.unregister(name="terminalreporter")
    logging.getLogger("celeriac").setLevel(logging.NOTSET)  # the simulation has raised it


def run_histories(seeds: Iterable[int]) -> Iterator[Violation | None]:
    logging.getLogger("celeriac").setLevel(logging.CRITICAL)
    enter(How())
    for seed in seeds:
        limit(HISTORY_SECONDS)
        yield run_one(seed)[1]


def run_baseline(session: pytest.Session, histories: int) -> Baseline:
    tracing.trace()
    be_silent(session)
    baseline = Baseline()
    for item, following in zip(session.items, [*session.items[1:], None], strict=True):
        began, cpu_began, failed = time.perf_counter(), time.process_time(), session.testsfailed
        tracing.reached.clear()
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        seconds = time.process_time() - cpu_began
        waits = time.perf_counter() - began > WAITS_LONG + WAITS_MUCH * seconds
        if session.testsfailed == failed and not waits:
            baseline.seconds[item.nodeid] = seconds
            for place in tracing.reached:
                baseline.tests.setdefault(place, []).append(item.nodeid)
    for tests in baseline.tests.values():
        tests.sort(key=baseline.seconds.__getitem__)
    tracing.reached.clear()
    for seed, _ in enumerate(run_histories(range(1, histories + 1)), 1):
        for place in tracing.reached:
            baseline.seeds.setdefault(place, []).append(seed)
        tracing.reached.clear()
    return baseline


def judge(
    session: pytest.Session, mutant: Mutant, items: list[pytest.Item], seeds: Iterable[int], baseline: Baseline
) -> int:
    """Return whether a mutant survives."""
    if mutant.mutation.change != UNCHANGED:
        make(mutant)
    be_silent(session)
    for item, following in zip(items, [*items[1:], None], strict=False):  # there may be none
        limit(baseline.seconds[item.nodeid])
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return KILLED
    return KILLED if any(run_histories(seeds)) else SURVIVED
