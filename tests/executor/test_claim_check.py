"""Claims that a live worker's lease does not name, over claims in memory, which may be slow to be read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing

import pytest

from celeriac.backend.claims.claim import Claim, Granted, Lease, LeaseRecord, LeaseState
from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.cluster.lost_tasks.claim_check import NOT_RUNNING, ClaimCheck
from celeriac.executor.interfaces import LostTask
from tests.support.cli_runner import until


class SlowClaims(MemoryClaims):
    """Claims during whose next reading `meanwhile` happens."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] = lambda: None

    def read(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return super().read(ids)


class Place:
    """A claim check, with its store and its lease monitor."""

    def __init__(self) -> None:
        self.store = SlowClaims()
        self.monitor = LeaseMonitor(self.store, on_news=lambda: None, poll_interval=3600.0)
        self.lost: list[LostTask] = []
        self.claim_check = ClaimCheck(self.monitor, on_lost=self.lost.extend)

    def close(self) -> None:
        self.monitor.close()

    def renew(self, number: int, *running: str, holder: str = "w") -> None:
        """Make the renewal of that number, and poll the leases."""
        self.renew_unseen(number, *running, holder=holder)
        self.monitor.poll()

    def renew_unseen(self, number: int, *running: str, holder: str = "w") -> None:
        lease = Lease(
            holder=holder, name=holder, host="h", pid=7, boot_id="", queues=(), slots=4, number=number, running=running
        )
        self.store.renew(lease)

    def claim(self, task_id: str, holder: str = "w") -> None:
        assert isinstance(self.store.claim(task_id, holder=holder, delivery="d"), Granted)

    def unclaimed(self, *ids: str, is_first: bool = True) -> Collection[str] | None:
        return self.claim_check.unclaimed(ids, is_first=is_first)

    def details(self) -> list[tuple[str, str]]:
        return [(lost.id, lost.detail) for lost in self.lost]


@pytest.fixture
def place() -> Iterator[Place]:
    with closing(Place()) as opened:
        until(lambda: opened.monitor.has_polled, "the first poll")
        yield opened


def test_task_is_lost_after_two_renewals_that_do_not_name_it(place):
    place.renew(1)
    place.claim("a")
    for number in (1, 2):
        place.renew(number)
        assert place.unclaimed("a", "unclaimed") == ["unclaimed"]
        assert place.details() == []
    place.renew(3)
    place.unclaimed("a")
    assert place.details() == [("a", NOT_RUNNING)]


def test_renewal_noted_in_one_scan_counts_in_the_next(place):
    place.renew(1)
    place.claim("a")
    place.unclaimed("a", "unclaimed")
    place.unclaimed("unclaimed", is_first=False)
    place.renew(3)
    place.unclaimed("a", "unclaimed")
    assert place.details() == [("a", NOT_RUNNING)]


def test_renewal_that_names_the_task_restarts_the_count(place):
    place.renew(1)
    place.claim("a")
    place.unclaimed("a")
    place.renew(2, "a")
    place.unclaimed("a")
    for number in (5, 6):
        place.renew(number)
        place.unclaimed("a")
    assert place.details() == []


def test_renewals_while_claims_are_read_do_not_count(place):
    place.renew(1)
    place.claim("a")
    place.unclaimed("a")
    place.store.meanwhile = lambda: [place.renew(number, "a") for number in (2, 3, 4)]
    place.unclaimed("a")
    assert place.details() == []


def test_renewals_before_the_claim_do_not_count(place):
    """The monitor has not seen them when the claim is read."""
    place.renew(1)

    def meanwhile() -> None:
        for number in (2, 3):
            place.renew_unseen(number)
        place.claim("a")

    place.store.meanwhile = meanwhile
    place.unclaimed("a")
    place.monitor.poll()
    place.unclaimed("a")
    assert place.details() == []


def test_renewals_of_another_worker_do_not_count(place):
    place.renew(1)
    place.claim("a")
    place.unclaimed("a")
    place.store.release("a", holder="w")
    place.renew(100, holder="other")
    place.claim("a", holder="other")
    place.unclaimed("a")
    place.unclaimed("a")
    assert place.details() == []


def test_a_renewal_that_was_on_its_way_for_long_shows_nothing(place):
    """Expect that it has replaced later ones, and that the leases of the monitor are older than that."""
    place.renew(14)
    place.renew_unseen(35, "a")
    place.claim("a")
    place.renew_unseen(10)
    for _ in range(3):
        assert place.unclaimed("a", "unclaimed") == ["unclaimed"]
    place.renew(36, "a")
    place.unclaimed("a")
    assert place.details() == []


def test_a_task_is_lost_although_the_first_renewal_without_it_was_on_its_way_for_long(place):
    place.renew(14)
    place.claim("a")
    place.renew_unseen(10)
    place.unclaimed("a")
    place.renew(15)
    place.unclaimed("a")
    assert place.details() == [("a", NOT_RUNNING)]


def test_a_malformed_lease_shows_nothing(place):
    place.renew(1)
    place.claim("a")
    place.store._leases["w"] = LeaseRecord(None, 2, LeaseState.LIVE)
    place.unclaimed("a")
    place.renew(100)
    place.unclaimed("a")
    assert place.details() == []
    place.renew(102)
    place.unclaimed("a")
    assert place.details() == [("a", NOT_RUNNING)]
