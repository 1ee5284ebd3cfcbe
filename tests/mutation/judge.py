"""Judge mutants, each in a process of its own, by the tests and the histories that reach what is changed.

A plugin of pytest: it takes over once all tests are collected.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import Phase, settings

from tests.mutation import child
from tests.mutation.child import Baseline
from tests.mutation.mutants import LUA, Mutant, find_functions

SLOW = ("rabbit", "postgres", "valkey", "browser")
"""A test that asks for one of these servers judges nothing."""

REDIS = {"redis", "shared_redis"}
REDIS_MODULES = (LUA, "backend/claims/redis")
"""Only mutants of these are judged by tests with a Redis server."""

SCRIPT_TESTS = tuple(f"tests/contract/test_{name}.py" for name in ("claims", "malformed_values", "redis_claims"))
"""They judge the scripts: which lines of them a test reaches is not known."""

TEST_SECONDS = 5.0  # of CPU that the tests of one mutant take at most
SET_CHILD_SUBREAPER = 36  # of prctl(2)


class Judge:
    def __init__(
        self, mutants: list[Mutant], *, histories: int, processes: int, on_verdict: Callable[[Mutant, str], None]
    ) -> None:
        self._mutants, self._histories, self._processes = mutants, histories, processes
        self._on_verdict = on_verdict
        self._running: dict[int, Mutant] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Let Hypothesis make the same examples for each mutant, and shrink none."""
        phases = [Phase.explicit, Phase.generate]
        settings.register_profile("mutants", settings(), derandomize=True, database=None, phases=phases)
        settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1)  # servers of a mutant that was ended become children
        session.items = [item for item in session.items if not is_slow(item)]
        gc.collect()
        find_functions()
        gc.freeze()
        self._folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        try:
            self._judge_all(session, self._run_baseline(session))
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        return True

    def _run_baseline(self, session: pytest.Session) -> Baseline:
        file = self._folder / "baseline"

        def run() -> int:
            file.write_bytes(msgspec.json.encode(child.run_baseline(session, self._histories)))
            return child.SURVIVED

        os.waitpid(self._fork(run), 0)
        if not file.exists():
            raise RuntimeError(f"the run without a mutant failed: {(self._folder / 'error').read_text()}")
        return msgspec.json.decode(file.read_bytes(), type=Baseline)

    def _judge_all(self, session: pytest.Session, baseline: Baseline) -> None:
        items = {item.nodeid: item for item in session.items if item.nodeid in baseline.seconds}
        for mutant in self._mutants:
            while len(self._running) >= self._processes:
                self._await_one()
            tests = tests_for(mutant, baseline, items)
            seeds = baseline.seeds.get(mutant.place, [])
            if tests or seeds:
                pid = self._fork(partial(child.judge, session, mutant, tests, seeds, baseline))
                self._running[pid] = mutant
            else:
                self._on_verdict(mutant, "not reached")
        while self._running:
            self._await_one()

    def _fork(self, run: Callable[[], int]) -> int:
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        status = child.KILLED
        try:
            child.begin(self._folder)
            status = run()
        except Exception:  # noqa: BLE001 - whatever a mutant causes
            (self._folder / "error").write_text(traceback.format_exc())
        finally:
            os._exit(status)

    def _await_one(self) -> None:
        pid, status = os.wait()
        mutant = self._running.pop(pid, None)
        if mutant is None:
            return  # a server
        for orphan in psutil.Process().children():
            if orphan.pid not in self._running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    orphan.kill()
        shutil.rmtree(self._folder / str(pid), ignore_errors=True)
        survives = os.WIFEXITED(status) and os.WEXITSTATUS(status) == child.SURVIVED
        self._on_verdict(mutant, "survived" if survives else "timeout" if os.WIFSIGNALED(status) else "killed")


def tests_for(mutant: Mutant, baseline: Baseline, items: dict[str, pytest.Item]) -> list[pytest.Item]:
    """Return the tests that judge a mutant: those without a server first."""
    if mutant.module == LUA:
        return [item for name, item in items.items() if name.startswith(SCRIPT_TESTS) and uses_redis(item)]
    names = [name for name in baseline.tests.get(mutant.place, ()) if name in items]
    until_now = accumulate(baseline.seconds[name] for name in names)
    reaching = [items[name] for name, seconds in zip(names, until_now, strict=True) if seconds < TEST_SECONDS]
    if mutant.module not in REDIS_MODULES:
        return [item for item in reaching if not fixtures(item) & REDIS]
    return sorted(reaching, key=uses_redis)


def fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


def is_slow(item: pytest.Item) -> bool:
    return any(server in name for server in SLOW for name in (*fixtures(item), item.name.partition("[")[2]))


def uses_redis(item: pytest.Item) -> bool:
    return bool(fixtures(item) & REDIS) or "[redis" in item.name
