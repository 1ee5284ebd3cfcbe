"""Changes of the limits of keys and rates."""

from __future__ import annotations

from typing import Any

from celeriac.backend.claims import place_state
from celeriac.backend.claims.place_state import Moment
from celeriac.backend.claims.places import LeaveReason, TakeReply
from celeriac.executor.limit import Limit
from celeriac.executor.limits import Limits
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.taken_places import NoPlace, TakenPlaces
from tests.simulation.changes.change import change

REAL_TAKE, REAL_LEAVE = Moment.take, Moment.leave
REAL_PLACES_TAKE = TakenPlaces.take
REAL_CLAIM = LeaseManager.claim_with_limits


def take_any(moment: Moment, request: Any, holder: str, delivery: str) -> TakeReply:
    """Give a worker the place of a reservation that has ended, although another task has it."""
    reply = REAL_TAKE(moment, request, holder, delivery)
    return TakeReply.TAKEN if reply is TakeReply.FULL else reply


def number_free_without_the_dead(moment: Moment, limit: Limit) -> int:
    return limit.number - len(moment._held(limit))


def leave_starts(moment: Moment, request: Any, holder: str, delivery: str, reason: LeaveReason) -> None:
    """Give up the place of a rate with the end of the command, not with that of its window."""
    REAL_LEAVE(moment, request, holder, delivery, reason)
    for limit in request.limits:
        if limit.period is not None:
            moment._held(limit).pop(place_state.start_of(request.id, delivery), None)


def ask_again_always(limits: Limits, request: Any) -> None:
    """Take the end of a task for a free place, although the store does not answer."""
    for limit in request.limits:
        limits._full.pop(limit.name, None)


def claim_first(manager: LeaseManager, task_id: str, request: Any, is_shutting_down: Any, limits: Any) -> Any:
    """Start a task whose claim is granted, and do not ask for its places."""
    return REAL_CLAIM(manager, task_id, request, is_shutting_down, ())


def forget_refused(places: TakenPlaces, task_id: str, *args: Any) -> NoPlace | None:
    """Forget a task that is refused, also if it holds a place since an earlier try."""
    refusal = REAL_PLACES_TAKE(places, task_id, *args)
    if refusal is not None:
        places.pop(task_id)
    return refusal


change(
    "no-places",
    "A worker starts a task without its place: that of a reservation that has ended belongs to another one.",
    (LeaseManager, "claim_with_limits", claim_first),
)
change(
    "places-of-others",
    "A worker gets a place that another task has: its own reservation has ended.",
    (Moment, "take", take_any),
)
change(
    "places-of-the-dead",
    "The places of dead workers are never free again.",
    (Moment, "_number_free", number_free_without_the_dead),
)
change(
    "place-of-the-refused",
    "A worker keeps a place of a task that it drops, because another limit is full at the next try.",
    (TakenPlaces, "take", forget_refused),
)
change(
    "short-window",
    "A start counts for its rate until its command has ended, not until the window has.",
    (Moment, "leave", leave_starts),
)
change(
    "restless-places",
    "An executor asks a store of places that does not answer again and again, without a rest.",
    (Limits, "_ask_again", ask_again_always),
)
