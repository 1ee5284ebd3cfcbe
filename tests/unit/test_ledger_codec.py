"""The JSON of tasks and events in a ledger: byte for byte that of version 0.1, because such ledgers exist."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac import Event, Secret, State, Task
from celeriac.errors import InvalidTask
from celeriac.executor.interfaces import TaskRecord
from celeriac.ledger.codec import (
    check_key,
    decode_event,
    decode_task,
    digest_of,
    encode_event,
    encode_payload,
    record_row,
    task_row,
)
from celeriac.task.result import Execution, Output, Reason
from celeriac.task.task import OnNeedFailed, OnWorkerLost

PLAIN = Task(key="plain", command=("echo", "hello"), id="id-plain")
FULL = Task(
    key="full",
    command="make report",
    queue="gpu",
    priority=7,
    slots=2,
    cpus=1.5,
    memory=2 * 2**30,
    gpus=1,
    env={"A": "1", "PASSWORD": Secret("hush")},
    cwd="/tmp",
    timeout=30,
    grace=2.5,
    retries=1,
    retry_delay=60.0,
    on_worker_lost=OnWorkerLost.FAIL,
    max_lost=5,
    needs=("plain",),
    on_need_failed=OnNeedFailed.RUN,
    tags=("nightly", "lr=0.1"),
    concurrency_key="db",
    id="id-full",
    attempt=3,
    lost=1,
)
SECRET_INPUT = Task(key="input", command="cat", stdin=Secret("hush"), id="id-input")
ARTIFACTS = Task(key="files", command="ls", artifacts=("*.csv", "deep/**"), id="id-files")
FILE_INPUT = Task(key="file", command="cat", stdin_file="in.txt", id="id-file")
SURROGATE = Task(key="surrogate", command=("cat", "\udc80"), id="id-surrogate")
"""A file name that is not UTF-8, as Python reads it from a command line."""

FULL_TEXT = (
    '{"command":"make report","queue":"gpu","slots":2,"cpus":1.5,"memory":2147483648,"gpus":1,'
    '"env":{"A":"1","PASSWORD":{"secret":"hush"}},"cwd":"/tmp",'
    '"timeout":30,"grace":2.5,"retries":1,"retry_delay":60.0,"on_worker_lost":"fail","max_lost":5,'
    '"needs":["plain"],"on_need_failed":"run","tags":["nightly","lr=0.1"],"concurrency_key":"db"}'
)
PAYLOADS = [
    (PLAIN, '{"command":["echo","hello"]}'),
    (
        FULL,
        FULL_TEXT,
    ),
    (SECRET_INPUT, '{"command":"cat","stdin":{"secret":"hush"}}'),
    (FILE_INPUT, '{"command":"cat","stdin_file":"in.txt"}'),
    (ARTIFACTS, '{"command":"ls","artifacts":["*.csv","deep/**"]}'),
    (SURROGATE, '{"command": ["cat", "\\udc80"]}'),
]
EXECUTION = Execution(
    host="node",
    pid=12,
    started=1.5,
    duration=2.0,
    exit_code=None,
    signal="SIGKILL",
    peak_memory=4096,
    leftovers_ended=True,
    stdout=Output(path="/tmp/out", size=9, left_out=1, tail="end"),
)
RETRIED_TEXT = (
    '{"state":"waiting","when":3.25,"id":"id-k.2","attempt":2,"reason":"signal","detail":"killed by SIGKILL",'
    '"execution":{"host":"node","pid":12,"started":1.5,"duration":2.0,"signal":"SIGKILL","peak_memory":4096,'
    '"leftovers_ended":true,"stdout":{"path":"/tmp/out","size":9,"left_out":1,"tail":"end"}},"retry_in":1.5}'
)
EVENTS = [
    (
        Event(key="k", state=State.QUEUED, when=1.0, id="id-k", attempt=1, number=4),
        '{"state":"queued","when":1.0,"id":"id-k","attempt":1}',
    ),
    (
        Event(
            key="k",
            state=State.WAITING,
            when=3.25,
            id="id-k.2",
            attempt=2,
            reason=Reason.SIGNAL,
            detail="killed by SIGKILL",
            execution=EXECUTION,
            retry_in=1.5,
            number=5,
        ),
        RETRIED_TEXT,
    ),
    (
        Event(key="k", state=State.FAILED, when=9.0, id="i", attempt=1, detail="\udc80", execution=Execution(host="h")),
        '{"state": "failed", "when": 9.0, "id": "i", "attempt": 1, "detail": "\\udc80", "execution": {"host": "h"}}',
    ),
]


def stored(task: Task) -> Any:
    return SimpleNamespace(**task_row(1, str(task.key), 0, task, 1.0))


@pytest.mark.parametrize(("task", "text"), PAYLOADS)
def test_a_task_is_stored_as_in_version_0_1(task: Task, text: str) -> None:
    assert encode_payload(task) == text


@pytest.mark.parametrize(("task", "text"), PAYLOADS)
def test_a_stored_task_is_read_back_whole(task: Task, text: str) -> None:
    assert decode_task(task.key, stored(task)) == task


def test_a_stored_secret_stays_secret() -> None:
    env: Mapping[str, str] = decode_task("full", stored(FULL)).env
    assert isinstance(env["PASSWORD"], Secret)
    assert not isinstance(env["A"], Secret)


def test_the_digest_of_a_task_is_that_of_version_0_1() -> None:
    assert digest_of(PLAIN) == 1693737040249700423
    assert digest_of(FULL) == 3074387727882683594


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_an_event_is_stored_as_in_version_0_1(event: Event, text: str) -> None:
    assert encode_event(event) == text


@pytest.mark.parametrize(("event", "text"), EVENTS)
def test_a_stored_event_is_read_back_whole(event: Event, text: str) -> None:
    assert decode_event(event.key, event.number, text) == event


def test_the_execution_of_a_record_is_stored_without_its_defaults() -> None:
    record = TaskRecord(PLAIN, State.SUCCESS, 2.0, execution=Execution(host="node", exit_code=0))
    assert record_row(1, "plain", record)["execution"] == '{"host":"node","exit_code":0}'


def test_a_nul_in_a_detail_is_replaced_because_postgresql_refuses_it() -> None:
    record = TaskRecord(PLAIN, State.FAILED, 2.0, detail="a\0b")
    assert record_row(1, "plain", record)["detail"] == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize("key", [1, ("a", 1), "\0", "\udc80"])
def test_a_key_that_a_ledger_cannot_store_is_refused(key: object) -> None:
    with pytest.raises(InvalidTask, match=r"^key: "):
        check_key(key)
