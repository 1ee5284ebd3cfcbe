"""The live workers by their replies and leases, without threads and servers."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from celeriac.backend.claims.claim import Lease
from celeriac.cluster.worker_registry import REPLY_EXPIRY, WorkerRegistry, shares_of
from celeriac.executor.capacity import WorkerShare
from celeriac.task.amounts import Amounts


@pytest.fixture
def registry() -> WorkerRegistry:
    return WorkerRegistry()


def reply(registry: WorkerRegistry, name: str, *queues: str, concurrency: Any = 4, now: float = 0.0) -> None:
    registry.stats_replied({name: {"pool": {"max-concurrency": concurrency}}}, now)
    registry.queues_replied({name: [{"name": queue} for queue in queues]}, now)


def lease_of(name: str, *queues: str, slots: int = 2) -> Lease:
    return Lease(holder=name, name=name, host="h", pid=1, boot_id="", queues=queues, slots=slots)


def test_capacity_is_unknown_until_workers_had_the_time_to_reply(registry):
    assert registry.capacity([], ()) is None
    registry.round_ended(0.0)
    assert registry.capacity([], ()) == {}


def test_first_reply_makes_the_capacity_known(registry):
    reply(registry, "w", "cpu", "gpu")
    reply(registry, "v", "gpu", concurrency=1)
    assert registry.capacity([], ()) == {"cpu": 4, "gpu": 5}
    assert registry.names() == {"w", "v"}
    assert (registry.serving("gpu"), registry.serving("cpu"), registry.serving("other")) == (2, 1, 0)


def test_worker_that_has_not_named_its_queues_has_no_capacity(registry):
    registry.stats_replied({"w": {"pool": {"max-concurrency": 4}}}, 0.0)
    assert registry.capacity([], ()) is None
    assert registry.names() == {"w"}
    assert registry.serving("cpu") == 0


@pytest.mark.parametrize("stats", [None, {}, {"pool": {"max-concurrency": None}}])
def test_worker_without_a_concurrency_runs_one_task(registry, stats):
    registry.stats_replied({"w": stats}, 0.0)
    registry.queues_replied({"w": [{"name": "cpu"}]}, 0.0)
    assert registry.capacity([], ()) == {"cpu": 1}


def test_error_in_place_of_queues_is_ignored(registry):
    registry.queues_replied({"w": {"error": "unknown command"}}, 0.0)
    assert registry.names() == frozenset()


def test_silent_worker_is_dropped(registry):
    reply(registry, "silent", "cpu")
    reply(registry, "w", "cpu", now=1.0)
    registry.round_ended(REPLY_EXPIRY)
    assert registry.names() == {"w"}
    assert registry.capacity([], ()) == {"cpu": 4}


def test_workers_get_the_full_time_again_after_an_outage(registry):
    reply(registry, "w", "cpu")
    registry.restart_timers(100.0)
    registry.round_ended(100.0 + REPLY_EXPIRY - 1)
    assert registry.names() == {"w"}


def test_worker_with_a_lease_is_counted_by_the_lease_alone(registry):
    reply(registry, "w", "cpu", concurrency=4)
    assert registry.capacity([(lease_of("w", "cpu", "gpu"), True)], {"w"}) == {"cpu": 2, "gpu": 2}
    assert registry.capacity([], {"w"}) is None, "it drains, or is silent"


@pytest.mark.parametrize(("has_renewed", "has_replied"), [(True, False), (False, True), (False, False)])
def test_lease_that_was_not_renewed_counts_once_its_worker_replied(registry, has_renewed, has_replied):
    if has_replied:
        reply(registry, "w", "cpu")
    capacity = registry.capacity([(lease_of("w", "cpu"), has_renewed)], {"w"})
    assert capacity == ({"cpu": 2} if has_renewed or has_replied else None)


@pytest.mark.parametrize(
    "malformed",
    [None, 5, [], "x", {"bad": None}, {"bad": {"pool": 5}}, {"bad": {"pool": {"max-concurrency": "x"}}},
     {"bad": {"pool": {"max-concurrency": 10**18}}}, {"bad": {"pool": {"max-concurrency": -5}}},
     {"bad": [5, None, {"name": 5}, {"x": 1}]}],
)  # fmt: skip
def test_a_malformed_reply_affects_no_other_worker(registry, malformed):
    registry.stats_replied(malformed, 0.0)
    registry.queues_replied(malformed, 0.0)
    reply(registry, "good", "q", concurrency=4)
    registry.round_ended(0.0)
    assert registry.capacity([], ()) == {"q": 4}


def test_version_changes_with_the_capacity_alone(registry):
    versions = []
    for step in (
        lambda: reply(registry, "w", "cpu"),
        lambda: registry.round_ended(0.0),
        lambda: reply(registry, "w", "cpu", now=1.0),
        lambda: registry.round_ended(1.0),
        lambda: reply(registry, "w", "cpu", "gpu", now=1.0),
        lambda: reply(registry, "w", "cpu", "gpu", concurrency=8, now=1.0),
        lambda: registry.round_ended(1.0 + REPLY_EXPIRY),
    ):
        before = (registry.version, registry.capacity([], ()))
        step()
        versions.append((registry.version != before[0], registry.capacity([], ()) != before[1]))
    assert versions == [(True, True), (True, False), (False, False), (False, False), *[(True, True)] * 3]


def test_renewed_lease_counts_as_a_reply_of_a_worker_that_has_replied(registry):
    reply(registry, "w", "cpu")
    registry.seen({"w", "v"}, REPLY_EXPIRY)
    registry.round_ended(REPLY_EXPIRY)
    assert registry.names() == {"w"}


def test_leases_add_the_workers_that_have_not_replied_to_those_that_serve_a_queue(registry):
    reply(registry, "w", "cpu")
    assert registry.serving("cpu", [lease_of("w", "cpu"), lease_of("v", "cpu"), lease_of("u", "gpu")]) == 2


def test_the_leases_of_live_workers_say_which_resources_there_are(registry):
    reply(registry, "w", "cpu")
    resources = Amounts(milli_cpus=4_000)
    leases = [replace(lease_of(name, "cpu"), resources=resources) for name in ("w", "v", "u")]
    active = [(lease, lease.name == "v") for lease in leases]
    assert shares_of([*registry.live(active), lease_of("none", "cpu")]) == {
        name: WorkerShare(resources, frozenset({"cpu"})) for name in ("w", "v")
    }
