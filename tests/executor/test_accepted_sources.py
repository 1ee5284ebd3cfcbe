"""Test which accepted tasks are taken to be queued, and which places they have."""

from __future__ import annotations

import pytest

from celeriac.executor.accepted import MIN_READY, AcceptedSource, AcceptedTasks
from celeriac.executor.priority_queue import Entry
from celeriac.runs.job_file import PlainJobs
from celeriac.runs.job_file.draft import Draft
from celeriac.task.task import Task

FIRST_ORDER, FIRST_PLACE = 100, 500


@pytest.fixture
def accepted() -> AcceptedTasks:
    """Accept three tasks of queue a and one of queue b, the first of each more urgent than the others."""
    fields = [("a", 2), ("a", 1), ("a", 1), ("b", 5)]
    drafts = [Draft("true", n, {"queue": queue, "priority": number}) for n, (queue, number) in enumerate(fields, 1)]
    accepted = AcceptedTasks()
    for source in PlainJobs(drafts, []).sources():
        accepted.add(AcceptedSource(source, 0.0, FIRST_ORDER, FIRST_PLACE))
    return accepted


def test_tasks_are_taken_while_few_of_their_queue_are_ready(accepted):
    ready = {"a": MIN_READY - 1, "b": MIN_READY}
    assert accepted.is_needed(ready.__getitem__)
    assert [each.task.key for each in accepted.take_needed(2, ready.__getitem__)] == ["1", "2"]
    ready["a"] = MIN_READY
    assert not accepted.is_needed(ready.__getitem__)
    assert accepted.take_needed(2, ready.__getitem__) == []
    assert len(accepted) == 2


def test_at_least_one_of_each_queue_is_taken(accepted):
    taken = accepted.take_needed(1, lambda queue: 0)
    assert {each.task.key for each in taken} == {"1", "4"}


def test_taken_tasks_have_the_places_in_which_they_were_accepted(accepted):
    (third,) = accepted.take_named({"3"}, ())
    assert (third.task.key, third.order - FIRST_ORDER, third.place - FIRST_PLACE) == ("3", 2, 2)
    entry = Entry(-1, third.order, third.order, third.task)
    assert accepted.number_before(entry) == 2
    assert accepted.number_before(Entry(-2, FIRST_ORDER, 0, Task(key="1", command="true", queue="a"))) == 0
