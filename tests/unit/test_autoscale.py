"""The decisions of the autoscaler, and what it makes of tasks and workers: no I/O."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.autoscale.decision import (
    FIRST_DELAY,
    MAX_DELAY,
    SURPLUS_TIME,
    Decision,
    Limits,
    Observation,
    Scaler,
    SubmitBackoff,
)
from celeriac.autoscale.load import Load, load_of
from celeriac.autoscale.pbs import parse_jobs
from celeriac.cluster.status_parts import WorkerStatus
from celeriac.executor.requests import DemandReply

INTERVAL = 10.0  # seconds between two looks


def scaler(maximum: int = 5, minimum: int = 0, slots: int = 2) -> Scaler:
    return Scaler(Limits(minimum=minimum, maximum=maximum, slots=slots), SubmitBackoff(Random(1)))


def seen(unserved: int | None, pending: int = 0, running: int = 0, starting: int = 0) -> Observation:
    return Observation(unserved=unserved, pending=pending, running=running, starting=starting)


@pytest.mark.parametrize(
    ("observation", "submit"),
    [
        (seen(0), 0),
        (seen(1), 1),
        (seen(2), 1),
        (seen(3), 2),
        (seen(100), 5),
        (seen(100, pending=2), 3),
        (seen(100, running=5), 0),
        (seen(4, pending=1), 1),
        (seen(4, pending=2), 0),
        (seen(4, running=2, starting=2), 0),
        (seen(4, running=2, starting=1), 1),
        (seen(None), 0),
    ],
)
def test_submits_what_is_missing_within_the_limit(observation, submit):
    assert scaler().decide(observation, 0.0) == Decision(submit=submit)


def test_keeps_the_minimum_without_tasks():
    assert scaler(minimum=3).decide(seen(0, running=1), 0.0) == Decision(submit=2)


def test_cancels_only_a_surplus_that_lasts():
    each = scaler()
    assert each.decide(seen(0, pending=3), 0.0) == Decision()
    assert each.decide(seen(4, pending=3), SURPLUS_TIME - 1) == Decision()
    assert each.decide(seen(0, pending=3), SURPLUS_TIME) == Decision(cancel=1)


def test_a_surplus_that_ends_is_forgotten():
    each = scaler()
    each.decide(seen(0, pending=3), 0.0)
    each.decide(seen(6, pending=3), 10.0)
    assert each.decide(seen(0, pending=3), SURPLUS_TIME) == Decision()


def test_nothing_is_cancelled_while_the_load_is_unknown():
    each = scaler()
    each.decide(seen(0, pending=3), 0.0)
    assert each.decide(seen(None, pending=3), SURPLUS_TIME) == Decision()
    assert each.decide(seen(0, pending=3), SURPLUS_TIME + 1) == Decision()


def test_more_than_the_maximum_is_cancelled_at_once_if_it_is_pending():
    assert scaler(maximum=2).decide(seen(100, pending=2, running=3), 0.0) == Decision(cancel=2)


def test_pauses_grow_after_failures_and_then_one_is_tried():
    backoff = SubmitBackoff(Random(1))
    each = Scaler(Limits(minimum=0, maximum=5, slots=1), backoff)
    delays = [backoff.failed(0.0) for _ in range(20)]
    assert 0.5 * FIRST_DELAY <= delays[0] <= 1.5 * FIRST_DELAY
    assert max(delays) <= 1.5 * MAX_DELAY
    assert each.decide(seen(5), 0.9 * delays[-1]) == Decision()
    assert each.decide(seen(5), delays[-1]) == Decision(submit=1)
    backoff.submitted()
    assert each.decide(seen(5), delays[-1]) == Decision(submit=1)
    backoff.succeeded()
    assert each.decide(seen(5), delays[-1]) == Decision(submit=5)


def test_a_submission_after_failed_submissions_ends_the_pause():
    backoff = SubmitBackoff(Random(1))
    backoff.failed(0.0, submission=True)
    backoff.submitted()
    assert not backoff.is_failing


class Cluster:
    """A model of a cluster: allocations wait for a node, then for their worker, then run, and end when idle."""

    def __init__(self, limits: Limits, nodes: int) -> None:
        self.scaler = Scaler(limits, SubmitBackoff(Random(1)))
        self.limits, self.nodes = limits, nodes
        self.pending = self.starting = self.working = 0
        self.now = 0.0

    @property
    def allocations(self) -> int:
        return self.pending + self.starting + self.working

    def step(self, tasks: int | None) -> Decision:
        """Let time pass: workers begin, idle ones end, nodes are given. Then look, and act."""
        self.now += INTERVAL
        slots = self.limits.slots
        self.working += self.starting
        needed = self.working if tasks is None else -(-tasks // slots)
        self.working = min(self.working, max(needed, 0))
        self.starting = min(self.pending, max(0, self.nodes - self.working))
        self.pending -= self.starting
        unserved = None if tasks is None else max(0, tasks - self.working * slots)
        running = self.working + self.starting
        observation = seen(unserved, pending=self.pending, running=running, starting=self.starting)
        decision = self.scaler.decide(observation, self.now)
        self.pending += decision.submit - decision.cancel
        return decision


LIMITS = st.builds(
    lambda minimum, more, slots: Limits(minimum=minimum, maximum=minimum + more, slots=slots),
    st.integers(0, 3),
    st.integers(1, 10),
    st.integers(1, 8),
)
LOADS = st.lists(st.none() | st.integers(0, 100), max_size=30)


@given(LIMITS, st.integers(0, 12), LOADS, st.integers(0, 100))
def test_stays_within_the_limits_and_comes_to_rest(limits, nodes, loads, last):
    cluster = Cluster(limits, nodes)
    for tasks in loads:
        decision = cluster.step(tasks)
        assert cluster.pending >= 0
        assert cluster.allocations <= limits.maximum
        assert not (decision.submit and decision.cancel)
        if tasks is not None and not decision.cancel:
            assert cluster.allocations >= limits.minimum
    rounds = 2 * (limits.maximum + int(SURPLUS_TIME / INTERVAL)) + 2
    for _ in range(rounds):
        cluster.step(last)
    wanted = min(limits.maximum, max(limits.minimum, -(-last // limits.slots)))
    assert cluster.allocations == wanted
    if last >= limits.slots * limits.minimum:  # else idle workers of the minimum end and are replaced
        assert [cluster.step(last) for _ in range(10)] == [Decision()] * 10


@given(LIMITS, st.lists(st.integers(0, 100), max_size=30))
def test_a_short_dip_of_the_load_cancels_nothing(limits, loads):
    cluster = Cluster(limits, nodes=0)
    for _ in range(3):
        cluster.step(100)
    for dip in loads:
        assert cluster.step(dip).cancel == 0
        cluster.step(1_000)


# — the load —


def worker(name: str, queues: tuple[str, ...], concurrency: int, running: int, **more) -> WorkerStatus:
    return WorkerStatus(name, queues, concurrency, running, **more)


def test_free_slots_of_other_queues_serve_no_task():
    load = Load({"a": 10}, [worker("w", ("b",), 10, 0), worker("x", ("a",), 4, 1)])
    assert load.unserved() == 7


def test_draining_and_suspected_workers_serve_no_task():
    load = Load({"a": 2}, [worker("w", ("a",), 2, 0, draining=True), worker("x", ("a",), 2, 0, heartbeat_age=60.0)])
    assert load.unserved() == 2


def test_workers_of_one_queue_leave_the_others_to_tasks_that_need_them():
    load = Load({"a": 2, "b": 2}, [worker("w", ("a", "b"), 2, 0), worker("x", ("a",), 2, 0)])
    assert load.unserved() == 0


def test_executors_count_for_no_more_tasks_than_they_have_slots():
    replies = [DemandReply(waiting={"a": 5, "b": 5, "other": 9}, open_slots=6), DemandReply(waiting={}, open_slots=9)]
    assert load_of(["a", "b"], {"b": 1}, replies, []).waiting == {"a": 5, "b": 2}


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)), st.data())
def test_no_more_tasks_are_served_than_there_are_free_slots(waiting, data):
    queues = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True).map(tuple)
    workers = data.draw(
        st.lists(st.builds(worker, st.text(), queues, st.integers(0, 4), st.integers(0, 6)), max_size=5)
    )
    free = sum(max(0, (each.concurrency or 0) - (each.running or 0)) for each in workers)
    total = sum(waiting.values())
    assert max(0, total - free) <= Load(waiting, workers).unserved() <= total


def test_the_jobs_of_qstat():
    first = "Job Id: 1.pbs\n    Job_Name = a b\n    job_state = R\n    Variable_List = A=b,\n\tjob_state = Q\n"
    assert [*parse_jobs(first + "\nJob Id: 2[].pbs\n")] == [
        ("1.pbs", {"Job_Name": "a b", "job_state": "R", "Variable_List": "A=b,"}),
        ("2[].pbs", {}),
    ]
