"""Cancel tasks of a run through the ledger, and wait until its owner has done so."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

from celeriac.executor.requests import CancelOutcome, CancelResult
from celeriac.ledger.cancel import TakesNoRequests
from celeriac.ledger.run_store import RunStore
from celeriac.task.state import State

POLL_INTERVAL = 0.2  # seconds between two reads of the tasks of a run
OWNER_RESPONSE_TIME = 2.0  # seconds within which a live owner handles a request
OWNER_CANCELS = "its owner, {owner}, will cancel it"
NEXT_OWNER_CANCELS = "no service owns this run; the next owner will cancel it"

AskOwner: TypeAlias = Callable[[str, Collection[str] | None], None]
"""Ask the owner of this label to cancel the tasks of these keys, or the whole run. Raises `InvalidConfig`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelledRun:
    """The effect on a whole run."""

    name: str
    owner: str | None
    """The owner that cancels the rest."""

    revoked: int
    left: int
    """The number of tasks that have not ended."""

    had_ended: bool

    def fields(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"run": self.name, "owner": self.owner, "revoked": self.revoked, "left": self.left}


def cancel_tasks(
    ledger: RunStore, run: int, name: str, keys: Collection[str], *, wait: float, ask_owner: AskOwner | None = None
) -> tuple[list[CancelResult], str | None]:
    """Cancel these tasks. Return a result for each key, and the owner that cancels the others.

    Wait `wait` seconds for their ends, and for an owner at least `OWNER_RESPONSE_TIME`. `ask_owner` asks one that takes
    no requests through the ledger. Raises `LedgerError`, and `InvalidConfig` if the owner cannot be asked.
    """
    states_before = ledger.task_states(run, keys)
    unfinished = [key for key, (state, _) in states_before.items() if not state.is_final]
    owner = request_cancel(ledger, run, name, unfinished, ask_owner) if unfinished else None
    deadline = time.monotonic() + max(wait, OWNER_RESPONSE_TIME if owner is not None else 0.0)
    while True:
        states_now = ledger.task_states(run, keys)
        if all(states_now[key][0].is_final for key in unfinished) or time.monotonic() >= deadline:
            break
        time.sleep(POLL_INTERVAL)  # a ledger does not report changes
    results = [result_for(key, states_now.get(key), owner, was_unfinished=key in unfinished) for key in keys]
    return results, owner


def request_cancel(
    ledger: RunStore, run: int, name: str, keys: Collection[str] | None, ask_owner: AskOwner | None
) -> str | None:
    """Cancel these tasks, or the whole run, without a wait. Return the owner that does it; None if there is none."""
    try:
        return ledger.cancel(run, name, keys)
    except TakesNoRequests as error:
        if ask_owner is None:
            raise
        ask_owner(error.owner, keys)
        return error.owner


def result_for(
    key: str, now: tuple[State, str | None] | None, owner: str | None, *, was_unfinished: bool
) -> CancelResult:
    if now is None:
        return CancelResult(name=key, outcome=CancelOutcome.UNKNOWN)
    state, detail = now
    if not was_unfinished:
        return CancelResult(name=key, outcome=CancelOutcome.HAD_ENDED, state=state, detail=detail)
    if state is State.REVOKED:
        return CancelResult(name=key, outcome=CancelOutcome.REVOKED, state=state, detail=detail)
    if not state.is_final:
        detail = NEXT_OWNER_CANCELS if owner is None else OWNER_CANCELS.format(owner=owner)
    return CancelResult(name=key, outcome=CancelOutcome.CALLED_BACK, state=state, detail=detail)


def cancel_run(
    ledger: RunStore, run: int, name: str, *, wait: float, ask_owner: AskOwner | None = None
) -> CancelledRun:
    """Cancel all tasks of a run. Waits and raises as `cancel_tasks` does."""
    counts_before = ledger.count_states(run)
    had_ended = not count_unfinished(counts_before)
    owner = None if had_ended else request_cancel(ledger, run, name, None, ask_owner)
    deadline = time.monotonic() + max(wait, OWNER_RESPONSE_TIME if owner is not None else 0.0)
    # Before its end, a live run records the tasks that were only in its file.
    while not (had_ended or ledger.has_ended(run)) and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL)  # a ledger does not report changes
    counts_now = ledger.count_states(run)
    return CancelledRun(
        name=name,
        owner=owner,
        revoked=counts_now[State.REVOKED] - counts_before[State.REVOKED],
        left=count_unfinished(counts_now),
        had_ended=had_ended,
    )


def count_unfinished(states: Counter[State]) -> int:
    return sum(number for state, number in states.items() if not state.is_final)
