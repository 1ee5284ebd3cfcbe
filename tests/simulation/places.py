"""Places of limits in memory: `place_state` decides about them, as it does in a database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from celeriac.backend.claims.claim import LeaseState
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.backend.claims.place_state import UNTIL_END, Moment, State
from celeriac.backend.claims.place_use import NOTE_KEPT, LimitStatus, Note, PlacesOfLimit, limits_of
from celeriac.backend.claims.places import RESERVATION, LeaveReason, TakeReply
from celeriac.executor.limit import PlaceRequest, Refusal


class MemoryPlaces:
    """The places in the store of some claims."""

    errors: tuple[type[Exception], ...] = ()

    def __init__(self, claims: MemoryClaims, clock: Callable[[], float]) -> None:
        """`clock` returns the time of the store, in seconds since the epoch."""
        self._claims, self._clock = claims, clock
        self.reservation = RESERVATION
        self._states: defaultdict[str, State] = defaultdict(State)
        self._notes: dict[str, tuple[float, Note]] = {}

    def _moment(self) -> Moment:
        return Moment(self._states, self._clock(), self._is_live, self.reservation)

    def _is_live(self, holder: str) -> bool:
        record = self._claims.leases().get(holder)
        return record is not None and record.state is LeaseState.LIVE

    def reserve(
        self, asker: str, requests: Sequence[PlaceRequest], ended: Sequence[tuple[PlaceRequest, bool]] = ()
    ) -> Mapping[str, Refusal]:
        return self._moment().reserve(asker, requests, ended)

    def renew(self, requests: Sequence[PlaceRequest]) -> None:
        self._moment().renew(requests)

    def take(self, request: PlaceRequest, *, holder: str, delivery: str) -> TakeReply:
        return self._moment().take(request, holder, delivery)

    def leave(self, request: PlaceRequest, *, holder: str, delivery: str, reason: LeaveReason) -> None:
        self._moment().leave(request, holder, delivery, reason)

    def holders(self, name: str) -> Collection[str]:
        return set(self._states[name].until)

    def announce(self, asker: str, note: Note | None) -> None:
        self._notes.pop(asker, None)
        if note is not None:
            self._notes[asker] = (self._clock(), note)

    def limits_in_use(self) -> tuple[LimitStatus, ...]:
        now = self._clock()
        places = {}
        for name, state in self._states.items():
            ends = [until for until in state.until.values() if until > now]
            places[name] = PlacesOfLimit(len(ends), min((end for end in ends if end < UNTIL_END), default=None))
        return limits_of((note for at, note in self._notes.values() if at >= now - NOTE_KEPT), places)

    def close(self) -> None:
        """There is no connection to close."""
