"""Decide which actions a page offers for a run and its tasks: only those that can work. For the others it says what to
do instead. Values in, values out.

retry     needs a submitted run without a live owner, which would have the tasks in its memory
cancel    needs no live owner, one that reads requests from the ledger, or one that can be asked
priority  needs no live owner, or one that can be asked
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from celeriac.ledger.views import RunState, RunView
from celeriac.task.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A sentence about an action that a page does not offer."""

    words: str
    command: str | None = None
    """What to type instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Possible:
    """The actions for a run or for a task."""

    retry: bool = False
    cancel: bool = False
    priority: bool = False
    pause: bool = False
    resume: bool = False
    parallelism: bool = False
    advice: Advice | None = None


def actions_of_run(run: RunView, *, can_ask: bool) -> Possible:
    """Return the actions for a whole run. `can_ask` says whether its live owner may be asked."""
    unsuccessful = run.counts.failed + run.counts.revoked + run.counts.never_ran
    is_live = run.owner is not None and not run.is_submitted and can_ask
    can_pause = run.state is not RunState.ENDED and (run.is_submitted or is_live)
    return Possible(
        retry=bool(unsuccessful) and can_retry(run),
        cancel=run.state is not RunState.ENDED and can_cancel(run, can_ask=can_ask),
        pause=can_pause and not run.is_paused,
        resume=can_pause and run.paused is not None,
        parallelism=is_live and run.state is not RunState.ENDED,
        advice=run_advice(run, unsuccessful, can_ask=can_ask),
    )


def actions_of_task(run: RunView, key: str, state: State, *, can_ask: bool) -> Possible:
    """Return the actions for one task."""
    if state.is_final:
        if can_retry(run):
            return Possible(retry=True)
        words = "To run it again:" if run.owner is None else "To run it again when its run has ended:"
        return Possible(advice=Advice(words=words, command=retry_command(run.name, key)))
    return Possible(
        cancel=can_cancel(run, can_ask=can_ask),
        priority=state is State.WAITING and (run.owner is None or can_ask),
        advice=None if can_cancel(run, can_ask=can_ask) else unreachable(run, key),
    )


def can_retry(run: RunView) -> bool:
    return run.is_submitted and run.owner is None


def can_cancel(run: RunView, *, can_ask: bool) -> bool:
    return run.owner is None or run.is_submitted or can_ask


def run_advice(run: RunView, unsuccessful: int, *, can_ask: bool) -> Advice | None:
    if run.state is not RunState.ENDED and not can_cancel(run, can_ask=can_ask):
        return unreachable(run, "KEY")
    if not unsuccessful or can_retry(run) or run.state is RunState.INTERRUPTED:  # the page says how that is resumed
        return None
    if run.owner is not None:
        return Advice(words="What did not succeed can run again when the run has ended.")
    return Advice(words="To run again what did not succeed:", command=retry_command(run.name))


def unreachable(run: RunView, key: str) -> Advice:
    words = f"Its owner, {run.owner}, cannot be asked from here. To cancel it there:"
    return Advice(words=words, command=shlex.join(["celeriac", "cancel", key]))


def retry_command(run: str, key: str | None = None) -> str:
    return shlex.join(["celeriac", "retry", run, *([] if key is None else ["--key", key])])


def is_within_reach(owner: str | None, host: str, *, has_broker: bool) -> bool:
    """Return whether a server on this host may reach an owner, such as "process 7 on HOST"."""
    return owner is not None and (has_broker or owner.endswith(f" on {host}"))
