"""The task SDK's own client and a small HTTP server: what is repeated, and what becomes of the workload."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk.api import client as sdk
from airflow.sdk.execution_time import supervisor

from celeriac.airflow.api_server import ApiServerWait, NotStarted
from celeriac.airflow.api_server_policy import ApiServerPolicy, RequestKind, kind_of, token_expiry
from tests.airflow import workloads as workload_factory
from tests.airflow.api_server import ApiServer, Behaviour, api_server
from tests.support.cli_runner import until
from tests.support.servers import free_port

PID = 4711
NOW = datetime(2026, 1, 1, tzinfo=UTC)
START, HEARTBEAT, END, OTHER = RequestKind.START, RequestKind.HEARTBEAT, RequestKind.END, RequestKind.OTHER

POLICY = ApiServerPolicy(patience=600.0, max_silence=240.0)
USERS_POLICY = ApiServerPolicy(
    patience=600.0, max_silence=240.0, limits_heartbeats=False, heartbeat_attempts=7, max_attempts=7
)


def repeats(policy: ApiServerPolicy, kind: RequestKind, **state: Any) -> bool:
    return policy.may_repeat(kind, **{"attempts": 1, "waited": 0.0, "silence": 0.0, **state})


@pytest.mark.parametrize(
    ("policy", "kind", "state", "expected"),
    [
        (POLICY, START, {"attempts": 1000, "waited": 599.0, "silence": 599.0}, True),
        (POLICY, START, {"waited": 600.0}, False),
        (POLICY, START, {"must_end": True}, False),
        (POLICY, START, {"is_shutting_down": True}, False),
        (USERS_POLICY, START, {"attempts": 1000, "waited": 599.0}, True),
        (POLICY, HEARTBEAT, {}, False),
        (USERS_POLICY, HEARTBEAT, {"attempts": 6}, True),
        (USERS_POLICY, HEARTBEAT, {"attempts": 7}, False),
        (POLICY, END, {"attempts": 1000, "waited": 599.0, "silence": 599.0, "is_shutting_down": True}, True),
        (POLICY, END, {"waited": 600.0}, False),
        (POLICY, END, {"waited": 9.0, "must_end": True}, True),
        (POLICY, END, {"waited": 10.0, "must_end": True}, False),
        (USERS_POLICY, END, {"attempts": 7}, False),
        (POLICY, OTHER, {"attempts": 1000, "silence": 239.0}, True),
        (POLICY, OTHER, {"silence": 240.0}, False),
        (USERS_POLICY, OTHER, {"attempts": 6, "silence": 300.0}, True),
    ],
)
def test_policy_decides_by_kind_and_time(policy, kind, state, expected):
    assert repeats(policy, kind, **state) is expected


def test_silence_ends_a_task_unless_the_user_limits_heartbeats():
    assert [POLICY.must_end_task(silence) for silence in (239.0, 240.0)] == [False, True]
    assert USERS_POLICY.must_end_task(1000.0) is False


def test_kind_follows_from_the_path():
    paths = ["task-instances/1/run", "task-instances/1/heartbeat", "task-instances/1/state", "connections/x"]
    assert [kind_of(path, has_started=True) for path in paths] == [OTHER, HEARTBEAT, END, OTHER]
    assert {kind_of(path, has_started=False) for path in paths} == {START}


@pytest.mark.parametrize("token", ["", "a-token", "a.b.c", "a.W10.c", "a.e30.c"])
def test_unreadable_token_has_no_expiry(token):
    assert token_expiry(token) is None


# — the client —


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


@pytest.fixture
def wait_by(monkeypatch):
    """Return a function that lets the SDK's client wait by a policy, and begins with a task."""
    monkeypatch.setattr(sdk.Client, "request", sdk.Client.request)
    monkeypatch.setattr(supervisor, "MAX_FAILED_HEARTBEATS", 3)

    def begin(must_end=bool, is_shutting_down=bool, **options):
        policy = ApiServerPolicy(
            **{"patience": 30.0, "max_silence": 30.0, "min_delay": 0.05, "max_delay": 0.1, **options}
        )
        wait = ApiServerWait(policy)
        wait.install()
        wait.begin("id", workload_factory.task("t"), must_end=must_end, is_shutting_down=is_shutting_down)
        return wait

    return begin


@pytest.fixture
def client_of():
    """Return a function that makes a client."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(sdk.Client(base_url=url, token="a-token", timeout=0.3))


def start(client: Any) -> None:
    client.task_instances.start(uuid4(), PID, NOW)


def let_start_after(server: ApiServer, requests: int) -> threading.Thread:
    """Let the server recover once it has seen some requests."""

    def recover() -> None:
        until(lambda: len(server.requests) >= requests, "the requests")
        server.behaviour = Behaviour.START

    thread = threading.Thread(target=recover)
    thread.start()
    return thread


@pytest.mark.parametrize("behaviour", [Behaviour.UNAVAILABLE, Behaviour.HANG])
def test_start_is_repeated_with_the_same_pid(wait_by, server, client_of, behaviour):
    wait_by()
    server.behaviour = behaviour
    recovery = let_start_after(server, 2)
    start(client_of(server.url))
    recovery.join()
    pids = [content["pid"] for content in server.contents("/run")]
    assert len(pids) >= 2
    assert set(pids) == {PID}


def test_start_waits_for_a_server_that_is_down(wait_by, client_of):
    wait = wait_by(patience=0.5)
    with pytest.raises(Exception, match="refused") as raised:
        start(client_of(f"http://127.0.0.1:{free_port()}/execution/"))
    with pytest.raises(NotStarted, match=r"^the API server was unavailable: ConnectError: "):
        wait.raise_if_not_started(raised.value, workload_factory.task("t"))


@pytest.mark.parametrize("reason", ["must_end", "is_shutting_down"])
def test_start_stops_waiting_at_once_if_it_must(wait_by, server, client_of, reason):
    flag = threading.Event()
    wait = wait_by(**{reason: flag.is_set}, min_delay=20.0, max_delay=20.0)
    server.behaviour = Behaviour.UNAVAILABLE
    failures: list[BaseException] = []

    def run() -> None:
        with pytest.raises(Exception, match="503") as raised:
            start(client_of(server.url))
        failures.append(raised.value)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: server.requests, "the first request")
    flag.set()
    thread.join(10.0)
    assert len(failures) == 1
    with pytest.raises(NotStarted, match="503"):
        wait.raise_if_not_started(failures[0], workload_factory.task("t"))


@pytest.mark.parametrize("behaviour", [Behaviour.NOT_FOUND, Behaviour.FORBIDDEN])
def test_refusal_is_an_answer(wait_by, server, client_of, behaviour):
    wait = wait_by()
    server.behaviour = behaviour
    with pytest.raises(sdk.ServerResponseError) as raised:
        start(client_of(server.url))
    wait.raise_if_not_started(raised.value, workload_factory.task("t"))
    assert len(server.requests) == 1


def token_that_expires(seconds: float) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": int(time.time() + seconds)}).encode()).decode().rstrip("=")
    return f"e30.{payload}.signature"


def test_expired_token_hands_the_workload_back(wait_by, server, client_of):
    wait, workload = wait_by(), workload_factory.task("t")
    server.behaviour = Behaviour.FORBIDDEN
    with pytest.raises(sdk.ServerResponseError) as raised:
        start(client_of(server.url))
    wait.raise_if_not_started(raised.value, workload.model_copy(update={"token": token_that_expires(100)}))
    with pytest.raises(NotStarted, match=r"^its token has expired$") as failure:
        wait.raise_if_not_started(raised.value, workload.model_copy(update={"token": token_that_expires(-100)}))
    assert failure.value.token_has_expired


@pytest.fixture
def started(wait_by, server, client_of):
    """Return a function that starts a task by a policy, and returns the client and the wait."""

    def begin(**options):
        wait, client = wait_by(**options), client_of(server.url)
        server.behaviour = Behaviour.START
        start(client)
        return client, wait

    return begin


def test_heartbeat_is_sent_once_and_silence_ends_the_task(started, server):
    client, _ = started(max_silence=1.0)
    assert supervisor.MAX_FAILED_HEARTBEATS > 10**6
    server.behaviour = Behaviour.UNAVAILABLE

    def fail() -> bool:
        with pytest.raises(Exception, match="503"):
            client.task_instances.heartbeat(uuid4(), PID)
        return bool(supervisor.MAX_FAILED_HEARTBEATS == 0)

    assert not fail()
    assert len(server.contents("/heartbeat")) == 1
    until(fail, "the end of the task's time")


def test_limit_of_heartbeats_that_the_user_has_set_is_kept(started, server):
    client, _ = started(limits_heartbeats=False, heartbeat_attempts=2, max_silence=0.0)
    server.behaviour = Behaviour.UNAVAILABLE
    with pytest.raises(Exception, match="503"):
        client.task_instances.heartbeat(uuid4(), PID)
    assert (supervisor.MAX_FAILED_HEARTBEATS, len(server.contents("/heartbeat"))) == (3, 2)


def test_end_is_reported_when_the_server_is_back(started, server):
    client, _ = started()
    server.behaviour = Behaviour.UNAVAILABLE
    recovery = let_start_after(server, 4)
    client.task_instances.finish(uuid4(), "failed", NOW, None)
    recovery.join()
    assert len(server.contents("/state")) >= 3


def test_end_that_an_earlier_attempt_has_reported_is_no_error(started, server):
    client, _ = started()
    server.behaviour = Behaviour.HANG

    def recover() -> None:
        until(lambda: len(server.contents("/state")) >= 2, "the second report")
        server.behaviour = Behaviour.CONFLICT

    recovery = threading.Thread(target=recover)
    recovery.start()
    client.task_instances.finish(uuid4(), "failed", NOW, None)
    recovery.join()
    with pytest.raises(sdk.ServerResponseError):  # the first attempt: another process has ended the task
        client.task_instances.finish(uuid4(), "failed", NOW, None)


def test_error_of_a_started_task_hands_nothing_back(started, client_of):
    _, wait = started(patience=0.0, max_silence=0.0)
    with pytest.raises(Exception, match="refused") as raised:
        client_of(f"http://127.0.0.1:{free_port()}/execution/").task_instances.finish(uuid4(), "failed", NOW, None)
    wait.raise_if_not_started(raised.value, workload_factory.task("t"))
