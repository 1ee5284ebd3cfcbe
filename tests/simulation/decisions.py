"""Tell which branches of the pure decisions some histories took.

    if, elif, while, for ─► its body, and what follows without it        match ─► the body of each case

The lines are traced, which makes a history several times slower: so only on demand.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import celeriac

SOURCE = Path(celeriac.__file__).parent
MODULES = (
    *("backend/claims/failure_detector", "cluster/lost_tasks/claim_check", "cluster/lost_tasks/scan"),
    *("executor/dependencies", "executor/dispatcher", "executor/ledger_writer", "executor/lifecycle"),
    *("executor/lost_task_schedule", "executor/publish_retries", "executor/recovery", "executor/result_handler"),
    *("executor/revocation", "executor/slots", "executor/tracker"),
    *("worker/lease_manager", "worker/lease_state_machine", "worker/shutdown_steps", "worker/task"),
    "worker/supervisor/lease_policy",
)
LEFT = -1  # stands for the line after a function
Arc = tuple[str, int, int]
"""A module, a line, and the line that was run after it."""

arcs: set[Arc] = set()
"""Those that this process has run. A process adds none before `trace`."""

is_on = False
names = {str(SOURCE / f"{module}.py"): module for module in MODULES}


class Branch(NamedTuple):
    module: str
    line: int
    text: str
    sources: range
    """The lines of the condition."""

    body: int
    is_taken_without: bool
    """Whether it leads past the body."""

    def was_taken(self, by_source: dict[tuple[str, int], set[int]]) -> bool:
        targets = set[int]().union(*(by_source.get((self.module, line), ()) for line in self.sources))
        return bool(targets - {self.body, *self.sources}) if self.is_taken_without else self.body in targets


def trace() -> None:
    """Trace the lines of this thread from now on, if that was asked for. Each greenlet calls it."""
    if is_on:
        sys.settrace(on_call)


def on_call(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
    module = names.get(frame.f_code.co_filename)
    return None if module is None else tracer(module, frame.f_code)


def tracer(module: str, code: CodeType) -> Callable[..., Any]:
    before = code.co_firstlineno

    def on_line(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        nonlocal before
        line = frame.f_lineno if event == "line" else LEFT
        if event in ("line", "return"):
            arcs.add((module, before, line))
            before = line
        return on_line

    return on_line


def branches() -> Iterator[Branch]:
    """Yield all branches of the decisions."""
    for module in MODULES:
        source = (SOURCE / f"{module}.py").read_text()
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.If(test=test) | ast.While(test=test) if "TYPE_CHECKING" not in ast.unparse(test):
                    yield from two_branches(module, lines, node.lineno, test, node.body)
                case ast.For(iter=iterated):
                    yield from two_branches(module, lines, node.lineno, iterated, node.body)
                case ast.Match():
                    for case in node.cases:
                        start = case.pattern.lineno
                        span = range(start, case.body[0].lineno)
                        yield Branch(module, start, lines[start - 1].strip(), span, case.body[0].lineno, False)


def two_branches(
    module: str, lines: list[str], line: int, condition: ast.expr, body: list[ast.stmt]
) -> Iterator[Branch]:
    sources = range(line, (condition.end_lineno or line) + 1)
    for is_taken_without in (False, True):
        yield Branch(module, line, lines[line - 1].strip(), sources, body[0].lineno, is_taken_without)


def report(taken: set[Arc]) -> list[str]:
    """Return lines about the branches that were not taken, and how many there are."""
    by_source: dict[tuple[str, int], set[int]] = {}
    for module, before, line in taken:
        by_source.setdefault((module, before), set()).add(line)
    every = list(branches())
    missed = [branch for branch in every if not branch.was_taken(by_source)]
    lines = [
        f"not taken: {branch.module}.py:{branch.line}: {'not ' if branch.is_taken_without else ''}{branch.text}"
        for branch in missed
    ]
    return [*lines, f"{len(every) - len(missed)} of {len(every)} branches of the decisions were taken"]
