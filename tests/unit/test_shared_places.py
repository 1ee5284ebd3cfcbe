"""The places of limits that an executor shares with others: the calls of the store."""

from __future__ import annotations

import threading
from typing import Any

from celeriac.cluster.shared_places import SharedPlaces
from celeriac.executor.limit import Limit, PlaceRequest

REQUEST = PlaceRequest("a", (Limit("key:db", 1),))


class SlowStore:
    """A store that does not answer until it may, and then has one place."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.held: set[str] = set()

    def renew(self, requests: Any) -> None:
        self.may_answer.wait(10.0)

    def reserve(self, asker: str, requests: Any, ended: Any = ()) -> dict[str, Any]:
        self.held -= {request.id for request, _ in ended}
        self.held |= {request.id for request in requests}
        return {}

    def announce(self, asker: str, note: Any) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_request_that_came_too_late_to_the_store_holds_no_place():
    store: Any = SlowStore()
    places = SharedPlaces(store, timeout=0.01)
    places.renew([])
    assert list(places.reserve([REQUEST])) == ["a"]  # refused: no reply in time
    places.ended(REQUEST, was_sent=False)
    store.may_answer.set()
    places.close()
    assert store.held == set()
