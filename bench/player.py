"""Run one party of the cluster benchmark in a process of its own, which stays warm between its turns.

    cluster ─► {"do": "publish", "count": 1000} ─► serve ─► the party's own code
            ◄─ {"wall": 0.031, "cpu": 0.028}    ◄─┘

Standard library alone: the rivals' environments import it too.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OURS, INCUMBENTS = sys.executable, ".venv-incumbent/bin/python"

Cost = dict[str, float]
"""Seconds: "wall" and "cpu"."""


def cost_of(work: Callable[[], object]) -> Cost:
    """Measure the seconds on the clock, and of CPU in this process, its threads and its ended children."""
    cpu, wall = cpu_used(), time.perf_counter()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": cpu_used() - cpu}


def cpu_used() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def serve(moves: Mapping[str, Callable[..., Any]]) -> None:
    """Answer one line of JSON with another until the input ends. The output of libraries goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            asked = json.loads(line)
            print(json.dumps(moves[asked.pop("do")](**asked)), file=answers, flush=True)


class Player:
    def __init__(self, python: str, module: str, *words: str) -> None:
        """Start `python -m module words…` without waiting for it."""
        self._name = f"{module} {' '.join(words)}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [python, "-m", module, *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def ask(self, do: str, **facts: Any) -> Any:
        self.tell(do, **facts)
        return self.hear()

    def tell(self, do: str, **facts: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **facts}).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise PlayerDied(self._name, self._log.read().decode(errors="replace")[-2000:])
        return json.loads(line)

    def finish(self) -> None:
        """Let the party end what it has started, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._log):
            assert file is not None
            file.close()


@contextmanager
def players() -> Iterator[Callable[..., Player]]:
    """Return a function that starts parties; end them all afterwards."""
    started: list[Player] = []

    def new(*words: str) -> Player:
        started.append(Player(*words))
        return started[-1]

    try:
        yield new
    finally:
        for player in started:
            player.close()


class PlayerDied(Exception):
    def __init__(self, name: str, log: str) -> None:
        super().__init__(f"{name} died:\n{log}")
