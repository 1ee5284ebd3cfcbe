"""The rounds of requests to the workers: whom each round queries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from celeriac.backend.claims.claim import Lease
from celeriac.broker.app import make_app
from celeriac.cluster import worker_monitor
from celeriac.cluster.worker_monitor import WorkerMonitor
from tests.support.cli_runner import until


class Leases:
    """The leases of workers, of which each was renewed."""

    has_polled, polls = True, 0

    def __init__(self, names: list[str]) -> None:
        self.active = [
            (Lease(holder=name, name=name, host="h", pid=1, boot_id="", queues=("q",), slots=1), True) for name in names
        ]

    def names(self) -> frozenset[str]:
        return frozenset(lease.name for lease, _ in self.active)


class Place:
    """A monitor without a broker: the workers of `names` reply."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: list[str], leased: list[str]) -> None:
        self.names, self.queried = names, list[list[str] | None]()
        app = make_app(broker_url="memory://", result_backend="cache+memory://")
        monkeypatch.setattr(app.control, "broadcast", self._broadcast)
        self.monitor = WorkerMonitor(app, leases=Leases(leased), timeout=1.0)  # type: ignore[arg-type]

    def _broadcast(self, command: str, *, callback: Any, destination: list[str] | None, **_: Any) -> None:
        if command == "active_queues":
            self.queried.append(destination)
        for name in self.names:
            if destination is None or name in destination:
                callback({name: [{"name": "q"}] if command == "active_queues" else {}})

    def close(self) -> None:
        self.monitor.close()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_monitor, "INTERVAL", 0.01)


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    names, leased = request.param
    with closing(Place(monkeypatch, names, leased)) as place:
        yield place


LEASED = [f"leased-{n}" for n in range(20)]


@pytest.mark.parametrize("place", [(["plain", *LEASED], LEASED)], indirect=True)
def test_only_workers_without_a_lease_are_queried_in_each_round(place):
    until(lambda: len(place.queried) >= 3, "three rounds")
    assert place.queried[:3] == [None, ["plain"], ["plain"]]
    assert place.monitor.names() == {"plain", *LEASED}
    assert place.monitor.serving("q") == 21


@pytest.mark.parametrize("place", [(LEASED, LEASED)], indirect=True)
def test_all_workers_are_queried_again_later(place, monkeypatch):
    monkeypatch.setattr(worker_monitor, "REST_PER_REPLY", 0.001)
    until(lambda: len(place.queried) >= 3, "three rounds")
    assert place.queried[:3] == [None, None, None]


@pytest.mark.parametrize("place", [(["plain", *LEASED], LEASED)], indirect=True)
def test_all_workers_are_queried_once_more_on_request(place):
    until(lambda: place.queried[-1:] == [["plain"]], "a round without the others")
    place.monitor.query_all()
    before = len(place.queried)
    until(lambda: None in place.queried[before:], "a round with all")
    until(lambda: place.queried[-1] == ["plain"], "a round without the others")


@pytest.mark.parametrize("place", [(["plain", *LEASED], LEASED)], indirect=True)
def test_all_workers_are_queried_twice_when_one_has_started(place, monkeypatch):
    mailboxes = [21]
    monkeypatch.setattr(worker_monitor, "number_of_mailboxes", lambda *_: mailboxes[0])
    rounds = len(place.queried) + 2
    until(lambda: len(place.queried) > rounds, "two more rounds")
    before = len(place.queried)
    mailboxes[0] = 20  # one has ended
    until(lambda: len(place.queried) > before + 2, "three more rounds")
    assert None not in place.queried[before:]
    before = len(place.queried)
    mailboxes[0] = 21
    until(lambda: place.queried[before:].count(None) == 2 and place.queried[-1] == ["plain"], "two rounds with all")


@pytest.mark.parametrize("place", [(["plain", "other"], ["leased"])], indirect=True)
def test_all_workers_are_queried_in_each_round_if_most_have_no_lease(place):
    until(lambda: len(place.queried) >= 3, "three rounds")
    assert place.queried[:3] == [None, None, None]
