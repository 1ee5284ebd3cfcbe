"""The decisions of one scan for lost tasks, without threads and servers: replies go in, the next request comes out."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from celeriac.cluster.lost_tasks.scan import (
    BATCH_SIZE,
    MAX_ROUNDS,
    RETRY_DELAY,
    Finish,
    QueryWorkers,
    ReadClaims,
    ReadQueues,
    Scan,
    ScanRequest,
    Wait,
    WorkerView,
)


def view(
    names: Iterable[str] = (), leased: Iterable[str] = (), suspected_ids: Iterable[str] = (), knows_leases: bool = True
) -> WorkerView:
    return WorkerView(
        frozenset(names), frozenset(leased), knows_leases=knows_leases, suspected_ids=frozenset(suspected_ids)
    )


LEASED = view(["w"], ["w"])
PLAIN = view(["plain"], knows_leases=False)
MIXED = view(["w", "plain"], ["w"])


def scan_for(
    *ids: str, urgent: bool = False, lists_ids: bool = True, can_query_workers: bool = True, queue: str = "default"
) -> Scan:
    request = ScanRequest(dict.fromkeys(ids, queue), requested_at=0.0, urgent=urgent)
    return Scan(request, lists_ids=lists_ids, can_query_workers=can_query_workers)


def play_round(
    scan: Scan, *, queued: Collection[str] = (), held: Collection[str] = (), workers: WorkerView = LEASED
) -> None:
    """Reply to all requests of one round: nothing is claimed."""
    step = scan.next_step()
    assert isinstance(step, ReadClaims)
    scan.claims_read(step.ids, workers)
    if isinstance(scan.next_step(), ReadQueues):
        scan.queues_read(queued, workers, seconds=0.5)
    while isinstance(query := scan.next_step(), QueryWorkers):
        scan.workers_replied({name: set(held) & {*query.ids} for name in workers.names}, workers)


def test_task_is_lost_when_it_was_missed_twice():
    scan = scan_for("a", "b")
    assert scan.next_step() == ReadClaims(("a", "b"), is_first=True)
    play_round(scan)
    assert scan.next_step() == Wait(RETRY_DELAY)
    scan.resume()
    assert scan.next_step() == ReadClaims(("a", "b"), is_first=False)
    play_round(scan)
    assert scan.next_step() == Finish(("a", "b"))


def test_only_missed_tasks_are_looked_for_again():
    scan = scan_for("queued", "lost", "held", queue="q")
    play_round(scan, queued=["queued"], held=["held"], workers=MIXED)
    scan.resume()
    assert scan.next_step() == ReadClaims(("lost",), is_first=False)
    play_round(scan, queued=["lost"], workers=MIXED)
    assert scan.next_step() == Finish(())


def test_scan_ends_when_all_tasks_were_found():
    scan = scan_for("a")
    play_round(scan, queued=["a"])
    assert scan.next_step() == Finish(())


def test_scan_ends_when_all_tasks_are_claimed():
    scan = scan_for("a")
    scan.claims_read([], LEASED)
    assert scan.next_step() == Finish(())


def test_only_unclaimed_tasks_are_looked_for_in_their_queues():
    scan = scan_for("a", "b")
    scan.claims_read(["b"], LEASED)
    assert scan.next_step() == ReadQueues({"default": {"b"}}, with_delivered=False)


@pytest.mark.parametrize("workers", [PLAIN, MIXED, view(knows_leases=False)])
def test_delivered_messages_count_where_not_all_workers_are_known_by_leases(workers):
    scan = scan_for("a")
    scan.claims_read(["a"], workers)
    assert scan.next_step() == ReadQueues({"default": {"a"}}, with_delivered=True)


def test_unreadable_claims_decide_nothing():
    scan = scan_for("a")
    scan.claims_read(None, LEASED)
    assert scan.next_step() == Wait(RETRY_DELAY)
    scan.resume()
    play_round(scan)
    assert scan.next_step() == Wait(RETRY_DELAY)


def test_unavailable_broker_decides_nothing():
    scan = scan_for("a")
    scan.claims_read(["a"], LEASED)
    scan.broker_failed()
    assert scan.next_step() == Wait(RETRY_DELAY)
    for _ in range(2):
        scan.resume()
        play_round(scan)
    assert scan.next_step() == Finish(("a",))


def test_silent_worker_without_a_lease_decides_nothing():
    scan = scan_for("a")
    scan.claims_read(["a"], MIXED)
    scan.queues_read([], MIXED, seconds=0.0)
    assert scan.next_step() == QueryWorkers(["a"])
    scan.workers_replied({"w": []}, MIXED)
    assert scan.next_step() == Wait(RETRY_DELAY)
    for _ in range(2):
        scan.resume()
        play_round(scan, workers=MIXED)
    assert scan.next_step() == Finish(("a",))


def test_worker_that_has_left_need_not_reply():
    scan = scan_for("a")
    scan.claims_read(["a"], MIXED)
    scan.queues_read([], MIXED, seconds=0.0)
    scan.workers_replied({"w": []}, LEASED)
    scan.resume()
    play_round(scan)
    assert scan.next_step() == Finish(("a",))


def test_workers_are_queried_in_batches():
    ids = [f"id-{n:04}" for n in range(BATCH_SIZE + 1)]
    scan = scan_for(*ids)
    scan.claims_read(ids, PLAIN)
    scan.queues_read([], PLAIN, seconds=0.0)
    assert scan.next_step() == QueryWorkers(ids[:BATCH_SIZE])
    scan.workers_replied({"plain": ids[:2]}, PLAIN)
    assert scan.next_step() == QueryWorkers(ids[BATCH_SIZE:])
    scan.workers_replied({"plain": ids[BATCH_SIZE:]}, PLAIN)
    scan.resume()
    assert scan.next_step() == ReadClaims(tuple(ids[2:BATCH_SIZE]), is_first=False)


def test_no_more_is_asked_when_there_are_no_workers():
    ids = [f"id-{n:04}" for n in range(BATCH_SIZE + 1)]
    no_workers = view(knows_leases=False)
    scan = scan_for(*ids)
    scan.claims_read(ids, no_workers)
    scan.queues_read([], no_workers, seconds=0.0)
    scan.workers_replied({}, no_workers)
    assert scan.next_step() == Wait(RETRY_DELAY)


def test_urgent_scan_needs_one_miss_where_all_workers_claim():
    scan = scan_for("a", urgent=True)
    scan.claims_read(["a"], LEASED)
    assert scan.next_step() == ReadQueues({"default": {"a"}}, with_delivered=True)
    scan.queues_read([], LEASED, seconds=0.0)
    assert scan.next_step() == Finish(("a",))


def test_urgent_scan_needs_two_misses_where_a_worker_may_not_claim():
    scan = scan_for("a", urgent=True)
    play_round(scan, workers=MIXED)
    assert scan.next_step() == Wait(RETRY_DELAY)


@pytest.mark.parametrize(("lists_ids", "lost"), [(True, ()), (False, ("a",))])
def test_task_that_a_suspect_had_received_is_lost_unless_the_broker_lists_it(lists_ids, lost):
    workers = view(["w"], ["w"], suspected_ids=["a", "not wanted"])
    scan = scan_for("a", lists_ids=lists_ids)
    play_round(scan, queued=["a"], workers=workers)
    if isinstance(scan.next_step(), Wait):
        scan.resume()
        play_round(scan, queued=["a"], workers=workers)
    assert scan.next_step() == Finish(lost)


def test_without_remote_control_only_tasks_of_suspects_are_lost():
    workers = view(suspected_ids=["a"])
    scan = scan_for("a", "b", can_query_workers=False)
    for _ in range(2):
        step = scan.next_step()
        assert isinstance(step, ReadClaims)
        scan.claims_read(step.ids, workers)
        if isinstance(scan.next_step(), Wait):
            scan.resume()
    assert scan.next_step() == Finish(("a",))


def test_scan_is_given_up_after_many_rounds():
    scan = scan_for("a")
    for _ in range(MAX_ROUNDS - 1):
        scan.claims_read(None, LEASED)
        assert scan.next_step() == Wait(RETRY_DELAY)
        scan.resume()
    scan.claims_read(None, LEASED)
    assert scan.next_step() == Finish(())


def test_time_that_the_broker_was_busy_is_added_up():
    scan = scan_for("a")
    play_round(scan)
    scan.resume()
    play_round(scan)
    assert scan.broker_seconds == 1.0
