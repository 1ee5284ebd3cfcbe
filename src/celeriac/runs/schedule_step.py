"""Decide what a service does next for a schedule.

due times since the last one that was handled ─► MakeRun: of the earliest one
                                             ├► PassOver: they get no run, and why
                                             └► None: nothing is due, or it waits for the run before

A time is missed if no run was made within `PUNCTUAL` seconds after it could be made: no service was at work, or the
ledger was unavailable.

missed = "skip"   missed times get no run
         "once"   the last one of them gets one
         "all"    each gets one
overlap = "skip"  a time gets no run if the run before has not ended
          "wait"  its run is made when the run before has ended. Of several times that wait, the last one gets it; with
                  missed = "all" each one, in turn
          "allow" runs overlap
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from celeriac.runs.schedule import Schedule

PUNCTUAL = 60.0  # seconds


class Past(Struct, frozen=True, kw_only=True):
    """A schedule as the ledger has it."""

    handled: float
    """The last due time that got a run or was passed over, or when the schedule was first seen."""

    run: str | None = None
    """The name of its last run, if that has not ended."""

    ended: float | None = None
    """When its last run ended."""


class MakeRun(Struct, frozen=True):
    due: float


class PassOver(Struct, frozen=True):
    until: float
    """The last of the times."""

    why: str


Step: TypeAlias = MakeRun | PassOver | None


def next_step(schedule: Schedule, past: Past, now: float) -> Step:
    """Return the next step. It is asked again after each one."""
    pending = schedule.pending(past.handled, now)
    if not pending:
        return None
    waits = schedule.overlap == "wait"
    if past.run is not None and waits:
        return None
    if past.run is not None and schedule.overlap == "skip":
        return PassOver(pending[-1], f"run {past.run} has not ended")
    ended = past.ended or 0.0
    if waits and schedule.missed != "all":
        waited = [due for due in pending if due <= ended]
        if len(waited) > 1:
            return PassOver(waited[-2], "a later time waited, too")
    missed = [due for due in pending if now - (max(due, ended) if waits else due) > PUNCTUAL]
    if missed and schedule.missed == "skip":
        return PassOver(missed[-1], "missed: no service made its run in time")
    if len(missed) > 1 and schedule.missed == "once":
        return PassOver(missed[-2], "missed, as a later time was")
    return MakeRun(pending[0])
