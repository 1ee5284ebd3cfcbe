"""`celeriac cancel --run`: calls tasks back through the ledger, and says what became of each, or how many there are."""

from __future__ import annotations

import json
import time
from collections import Counter

import click

from celeriac.cli.cancelled import Cancelling, tell
from celeriac.cli.control_options import FAILED, complain
from celeriac.cli.formatting import many, on_one_line, seconds
from celeriac.cli.submit import the_ledger
from celeriac.config.settings import Settings
from celeriac.errors import InvalidConfig
from celeriac.executor.requests import CancelOutcome, CancelResult
from celeriac.ledger.run_store import RunStore
from celeriac.task.state import State

LOOK = 0.2  # seconds between two looks at what became of it
SOON = 2.0  # seconds in which an owner carries out what is asked of it
ASKED = "its owner, {owner}, calls it back"
MARKED = "nobody serves its run: it is called back by the next one who does"


def cancel_run(settings: Settings, name: str, keys: tuple[str, ...], *, wait: float, as_json: bool) -> int:
    """Answers the exit status. Raises `InvalidConfig` and `LedgerError`."""
    with the_ledger(settings, must_exist=True) as ledger:
        run = ledger.find_run(name)
        if run is None:
            raise InvalidConfig(
                "--run", f"there is no run {name!r}", "look for its name, which celeriac submit printed"
            )
        if keys:
            return some(ledger, run, name, tuple(dict.fromkeys(keys)), wait=wait, as_json=as_json)
        return all_of_it(ledger, run, name, wait=wait, as_json=as_json)


def some(ledger: RunStore, run: int, name: str, keys: tuple[str, ...], *, wait: float, as_json: bool) -> int:
    before = ledger.task_states(run, keys)
    going = [key for key, (state, _) in before.items() if not state.is_final]
    owner = ledger.cancel(run, name, going) if going else None
    until = time.monotonic() + max(wait, SOON if owner is not None else 0.0)
    while True:
        now = ledger.task_states(run, keys)
        if all(now[key][0].is_final for key in going) or time.monotonic() >= until:
            break
        time.sleep(LOOK)  # a ledger tells nobody that it has changed
    found = Cancelling(keys=keys, queues=(), ids=(), wait=wait)
    for key in keys:
        found.fates.append((fate(key, key in going, now.get(key), owner), owner or ""))
    return tell(found, as_json=as_json)


def fate(key: str, was_going: bool, now: tuple[State, str | None] | None, owner: str | None) -> CancelResult:
    if now is None:
        return CancelResult(name=key, outcome=CancelOutcome.UNKNOWN)
    state, detail = now
    if not was_going:
        return CancelResult(name=key, outcome=CancelOutcome.HAD_ENDED, state=state, detail=detail)
    if state is State.REVOKED:
        return CancelResult(name=key, outcome=CancelOutcome.REVOKED, state=state, detail=detail)
    why = detail if state.is_final else MARKED if owner is None else ASKED.format(owner=owner)
    return CancelResult(name=key, outcome=CancelOutcome.CALLED_BACK, state=state, detail=why)


def all_of_it(ledger: RunStore, run: int, name: str, *, wait: float, as_json: bool) -> int:
    before = ledger.count_states(run)
    owner = ledger.cancel(run, name, None) if left(before) else None
    until = time.monotonic() + max(wait, SOON if owner is not None else 0.0)
    while left(now := ledger.count_states(run)) and time.monotonic() < until:
        time.sleep(LOOK)  # a ledger tells nobody that it has changed
    revoked = now[State.REVOKED] - before[State.REVOKED]
    if as_json:
        click.echo(json.dumps({"run": name, "owner": owner, "revoked": revoked, "left": left(now)}))
    elif not left(before):
        complain(f"run {name!r} had ended")
    else:
        told = f"run {name!r}: {many(revoked, 'task')} revoked"
        if left(now):
            told += f", {left(now):,} more called back"
            told += f"; not ended in {seconds(wait)}" if wait else ""
            told += f" by {owner}" if owner is not None else "; nobody serves it, the next one who does ends them"
        click.echo(on_one_line(told))
    return FAILED if not left(before) or (wait and left(now)) else 0


def left(states: Counter[State]) -> int:
    return sum(number for state, number in states.items() if not state.is_final)
