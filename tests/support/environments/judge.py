"""The faults of a run that has ended."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.environments.plan import CANNOT, Plan, replay_line

OURS, COMMAND_LINE = "/celeriac/", "/celeriac/cli/"
OUT_OF_MEMORY = {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, 127, 126, 1, 120}
"""The exit statuses of an interpreter that lacks memory before it has read a line of ours."""


@dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    status: int | None
    """None if it hung."""

    out: str
    err: str
    numbers: Sequence[str] = ()
    """What the commands of the job file wrote, one number each."""

    survivors: Sequence[str] = ()
    partner: str = ""
    """What the partner wrote to standard error."""


@dataclass(frozen=True)
class Finding:
    """One run, and what was wrong with it."""

    problem: str
    plan: Plan
    outcome: Outcome

    def __str__(self) -> str:
        err, partner = self.outcome.err[-3000:], self.outcome.partner[-1000:]
        end = f"ended with {self.outcome.status}:\n{err}"
        return f"{replay_line(self.plan.seed)}\n{self.problem}: {self.plan}\n{end}\n{partner}"


def judge(plan: Plan, outcome: Outcome) -> Finding | None:
    """Return what was wrong with a run, if anything was."""
    problem = problem_of(plan, outcome)
    return None if problem is None else Finding(problem, plan, outcome)


def problem_of(plan: Plan, outcome: Outcome) -> str | None:
    if outcome.status is None:
        return "a hang"
    if outcome.survivors:
        return f"surviving processes {list(outcome.survivors)}"
    if (problem := problem_of_text(outcome.partner)) is not None:
        return f"{problem} of the partner"
    if is_before_our_lines(plan, outcome):
        return None
    return (
        problem_of_text(outcome.out + outcome.err) or problem_of_status(plan, outcome) or problem_of_runs(plan, outcome)
    )


def is_before_our_lines(plan: Plan, outcome: Outcome) -> bool:
    """Return whether Python itself could not start."""
    if plan.signals and "KeyboardInterrupt" in outcome.err and COMMAND_LINE not in outcome.err:
        return True
    if OURS in outcome.err:
        return False
    return "Traceback" in outcome.err or (plan.is_short_of_memory and outcome.status in OUT_OF_MEMORY)


def problem_of_text(text: str) -> str | None:
    if "bug in Celeriac" in text or ("Traceback" in text and OURS in text):
        return "a traceback"
    if "Exception ignored" in text or "Fatal Python error" in text:
        return "an error of the interpreter"
    return None


def problem_of_status(plan: Plan, outcome: Outcome) -> str | None:
    expected = plan.command.statuses | plan.allowed
    if outcome.status not in expected:
        return f"a wrong exit status, not in {sorted(expected)}"
    is_silent = not outcome.err and not plan.is_silent and not (plan.terminal and outcome.out)
    if outcome.status == CANNOT and CANNOT not in plan.command.statuses and is_silent:
        return "an error without a word"
    return None


def problem_of_runs(plan: Plan, outcome: Outcome) -> str | None:
    if len(outcome.numbers) != len(set(outcome.numbers)):
        return "a command that ran twice"
    if outcome.status == 0 and not plan.hides_files and len(outcome.numbers) < plan.command.starts:
        return "commands that did not run"
    return None
