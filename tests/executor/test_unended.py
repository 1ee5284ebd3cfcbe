"""What a live worker has claimed and says no more that it has: over claims in memory, which may be slow to be read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing

import pytest

from celeriac.backend.claims.claim import Claim, Granted, Lease
from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.backend.claims.memory import MemoryClaims
from celeriac.cluster.lost_tasks.claimed import UNENDED, ClaimCheck
from celeriac.executor.interfaces import LostTask
from tests.support.cli_runner import until


class SlowClaims(MemoryClaims):
    """What is to happen while they are read is given beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] = lambda: None

    def read(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return super().read(ids)


class Place:
    def __init__(self) -> None:
        self.store = SlowClaims()
        self.watch = LeaseMonitor(self.store, on_news=lambda: None, poll_interval=3600.0)
        self.found: list[LostTask] = []
        self.claimed = ClaimCheck(self.watch, self.found.extend)

    def close(self) -> None:
        self.watch.close()

    def renew(self, number: int, *running: str, holder: str = "w") -> None:
        """The renewal of that number, seen by whoever watches."""
        self.renew_unseen(number, *running, holder=holder)
        self.look()

    def renew_unseen(self, number: int, *running: str, holder: str = "w") -> None:
        lease = Lease(
            holder=holder, name=holder, host="h", pid=7, boot_id="", queues=(), slots=4, number=number, running=running
        )
        self.store.renew(lease)

    def look(self) -> None:
        self.watch.poll()

    def claim(self, task_id: str, holder: str = "w") -> None:
        assert isinstance(self.store.claim(task_id, holder=holder, delivery="d"), Granted)

    def sift(self, *ids: str, anew: bool = True) -> Collection[str] | None:
        return self.claimed.sift(ids, anew=anew)

    def told(self) -> list[tuple[str, str]]:
        return [(missing.id, missing.detail) for missing in self.found]


@pytest.fixture
def place() -> Iterator[Place]:
    with closing(Place()) as opened:
        until(lambda: opened.watch.has_polled, "the first look")
        yield opened


def test_what_its_worker_does_not_name_twice_is_nobodys(place):
    place.renew(1)
    place.claim("a")
    for number in (1, 2):
        place.renew(number)
        assert place.sift("a", "unclaimed") == ["unclaimed"]
        assert place.told() == []
    place.renew(3)
    place.sift("a")
    assert place.told() == [("a", UNENDED)]


def test_what_is_not_asked_for_a_second_time_in_one_search_is_still_known_in_the_next(place):
    place.renew(1)
    place.claim("a")
    place.sift("a", "unclaimed")
    place.sift("unclaimed", anew=False)
    place.renew(3)
    place.sift("a", "unclaimed")
    assert place.told() == [("a", UNENDED)]


def test_what_its_worker_names_again_is_its_own(place):
    place.renew(1)
    place.claim("a")
    place.sift("a")
    place.renew(2, "a")
    place.sift("a")
    for number in (5, 6):
        place.renew(number)
        place.sift("a")
    assert place.told() == []


def test_a_worker_that_names_it_while_its_claim_is_read_has_it(place):
    place.renew(1)
    place.claim("a")
    place.sift("a")
    place.store.meanwhile = lambda: [place.renew(number, "a") for number in (2, 3, 4)]
    place.sift("a")
    assert place.told() == []


def test_renewals_before_the_claim_do_not_count(place):
    """They were not yet seen when it was read."""
    place.renew(1)

    def meanwhile() -> None:
        for number in (2, 3):
            place.renew_unseen(number)
        place.claim("a")

    place.store.meanwhile = meanwhile
    place.sift("a")
    place.look()
    place.sift("a")
    assert place.told() == []


def test_numbers_of_another_worker_do_not_count(place):
    place.renew(1)
    place.claim("a")
    place.sift("a")
    place.store.release("a", holder="w")
    place.renew(100, holder="other")
    place.claim("a", holder="other")
    place.sift("a")
    place.sift("a")
    assert place.told() == []
