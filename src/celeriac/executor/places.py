"""Keep the places of limits in memory, for one executor: in a local run no other one shares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf

from celeriac.executor.limit import PlaceRequest, Refusal

ENDED_PLACES_SWEPT = 1_000  # limits without a place; with more of them, they are dropped


class LocalPlaces:
    """The places by limit. Each has the time until which it is held, which is infinite while that is not known."""

    renew_interval: float | None = None

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places: dict[str, dict[str, float]] = {}

    def reserve(self, requests: Sequence[PlaceRequest]) -> Mapping[str, Refusal]:
        """Take the places of each request, or none of them. Return the refusals, by id."""
        now = self._clock()
        self._sweep(now)
        return {request.id: refusal for request in requests if (refusal := self._reserve(request, now)) is not None}

    def _reserve(self, request: PlaceRequest, now: float) -> Refusal | None:
        for limit in request.limits:
            places = self._held(limit.name, now)
            if request.id not in places and len(places) >= limit.number:
                # Places that have no end yet end with an event, which is a reason to try again.
                return Refusal(limit, len(places), min(places.values()) - now)
        for limit in request.limits:
            self._places[limit.name][request.id] = inf
        return None

    def renew(self, requests: Sequence[PlaceRequest]) -> None:
        """Do nothing: places end with this process."""

    def started(self, request: PlaceRequest) -> None:
        """Begin the window of each rate."""
        now = self._clock()
        for limit in request.limits:
            places = self._places.get(limit.name, {})
            if limit.period is not None and places.get(request.id) == inf:
                places[request.id] = now + limit.period

    def ended(self, request: PlaceRequest, *, was_sent: bool) -> None:
        """Free the places of a task, besides those of rates if it may have started."""
        if was_sent:
            self.started(request)
        for limit in request.limits:
            places = self._places.get(limit.name, {})
            if limit.period is None or not was_sent:
                places.pop(request.id, None)

    def _held(self, name: str, now: float) -> dict[str, float]:
        places = self._places.setdefault(name, {})
        for task_id in [task_id for task_id, until in places.items() if until <= now]:
            del places[task_id]
        return places

    def _sweep(self, now: float) -> None:
        """Drop the limits of which no place is taken, once there are many."""
        if len(self._places) > ENDED_PLACES_SWEPT:
            self._places = {name: places for name in list(self._places) if (places := self._held(name, now))}
