"""Clients that cost a server more than they should: silent, slow, gone, or many."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import httpx
import psutil
import pytest
from sqlalchemy import event
from starlette.concurrency import run_in_threadpool

from celeriac.ledger.run_store import RunStore
from celeriac.task.task import Task
from celeriac.web import connections
from celeriac.web.connections import BoundedConnection
from celeriac.web.health import HealthBoard, HealthCheck
from celeriac.web.poller import MAX_TOPICS, MAX_VIEWERS, Poller
from tests.support.cli_runner import until
from tests.support.web_host import web_in_process, web_server

VIEWERS = 20


@pytest.fixture
def store(tmp_path) -> Iterator[RunStore]:
    with RunStore(f"sqlite:///{tmp_path}/ledger.db") as store:
        store.submit("jobs", None, [Task(key=key, command="true") for key in "abc"], is_given=True)
        yield store


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def is_refused(address: str) -> bool:
    with httpx.stream("GET", address, timeout=30) as answer:
        return answer.status_code == 503


def is_closed(client: socket.socket) -> bool:
    """Wait for an answer. Return whether the server closed the connection without one."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


# — silent and slow clients —


def test_silent_clients_keep_neither_descriptors_nor_the_port(tmp_path, store):
    with web_server(tmp_path, "--ledger", "ledger.db") as (url, celeriac), ExitStack() as stack:
        silent = [stack.enter_context(closing(connected(url))) for _ in range(BoundedConnection.most + 100)]
        assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
        assert is_closed(silent[0])
        assert psutil.Process(celeriac.process.pid).num_fds() < BoundedConnection.most + 100


def test_a_request_that_is_in_work_keeps_its_connection_among_silent_ones(store, monkeypatch):
    monkeypatch.setattr(BoundedConnection, "most", 3)
    with (
        web_in_process(store.database) as (url, _),
        httpx.stream("GET", f"{url}/live/runs", timeout=30) as stream,
        ExitStack() as stack,
    ):
        silent = [stack.enter_context(closing(connected(url))) for _ in range(6)]
        assert all(is_closed(client) for client in silent[:4])
        assert "event: page" in stream.iter_lines()


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nto"]
)
def test_a_slow_request_is_given_up(monkeypatch, sent):
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.1)
    with web_in_process() as (url, _), closing(connected(url)) as client:
        client.sendall(sent)
        while client.recv(1000):
            pass  # a refusal of the head that it has sent


def test_a_slow_answer_is_no_slow_request(store, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.1)
    with web_in_process(store.database) as (url, _), httpx.stream("GET", f"{url}/live/runs", timeout=30) as stream:
        lines = stream.iter_lines()
        assert "event: page" in lines
        for _ in range(2):  # each of these is closed after the timeout, which the answer under way outlives
            with closing(connected(url)) as silent:
                assert is_closed(silent)
        store.submit("second", None, [Task(key="a", command="true")], is_given=True)
        assert any("second" in line for line in lines)


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_bug(tmp_path, store):
    with web_server(tmp_path, "--ledger", "ledger.db") as (url, celeriac):
        head = "POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\nContent-Length: 99\r\n"
        with closing(connected(url)) as client:
            client.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 100 ")  # it waits for the body
            client.sendall(b"key")
        assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
        celeriac.process.terminate()
        ended = celeriac.wait()
        assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01 TLS\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_what_is_no_request_gets_an_answer_and_no_line_in_the_log(caplog, sent):
    with web_in_process() as (url, _), closing(connected(url)) as client:
        client.sendall(sent)
        assert client.recv(9) == b"HTTP/1.1 "
    assert caplog.records == []


# — many viewers —


@contextmanager
def statements(store: RunStore) -> Iterator[list[str]]:
    """Collect the statements that the ledger gets."""
    seen: list[str] = []

    def see(_: object, __: object, statement: str, *___: object) -> None:
        seen.append(statement)

    engine = store.database.engine
    event.listen(engine, "before_cursor_execute", see)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", see)


@pytest.mark.parametrize("path", ["/live/?", "/live/runs?text=j", "/live/run?run=jobs", "/live/task?run=jobs&key=a"])
def test_twenty_viewers_cost_one_poll_of_the_ledger(store, path):
    """Each has come from another change, so that the rest of its address differs."""
    with web_in_process(store.database, polls=False) as (url, poller), httpx.Client(timeout=30) as client:
        costs = []
        for number in (1, VIEWERS):
            with ExitStack() as stack:
                streams = [
                    stack.enter_context(client.stream("GET", f"{url}{path}&notice=n{viewer}")).iter_lines()
                    for viewer in range(number)
                ]
                assert all(next(lines) == ": watching" for lines in streams)
                with statements(store) as seen:
                    assert poller._run_round()
                costs.append(len(seen))
                assert all("event: page" in lines for lines in streams)
            until(lambda: not poller._topics, "the end of the watch")
        assert 0 < costs[1] <= costs[0]  # what one viewer has caused may still be known


def test_the_number_of_viewers_and_of_topics_is_bounded(store, monkeypatch):
    monkeypatch.setattr("celeriac.web.poller.MAX_VIEWERS", 2)
    with web_in_process(store.database) as (url, _), ExitStack() as stack:
        for path in ("/live/", "/api/v1/changes?runs=true"):
            assert stack.enter_context(httpx.stream("GET", url + path, timeout=30)).status_code == 200
        for path in ("/live/", "/api/v1/changes?run=jobs"):
            until(partial(is_refused, url + path), "the bound")
        assert httpx.get(url, headers={"accept": "text/html"}).status_code == 200


def test_topics_are_bounded():
    poller = Poller()
    viewers = [poller.watch(f"t{number}", bytes, print) for number in range(MAX_TOPICS)]
    with pytest.raises(Exception, match="too many different runs"):
        poller.check_room(["another"])
    poller.check_room(["t1"])
    poller.leave(viewers[0])
    poller.check_room(["another"])
    assert MAX_TOPICS < MAX_VIEWERS < BoundedConnection.most


def test_a_viewer_never_gets_what_was_read_before_it_came():
    poller, values, notices = Poller(), iter([b"old", b"old", b"new"]), []
    first = poller.watch("t", lambda: next(values), lambda: notices.append("first"))
    poller._read(first.topic)
    assert (first.take_news(), first.take_news()) == (b"old", None)
    second = poller.watch("t", lambda: b"", lambda: notices.append("second"))
    assert second.take_news() is None
    poller._read(first.topic)
    assert (first.take_news(), second.take_news()) == (None, b"old")
    poller._read(first.topic)
    assert (first.take_news(), second.take_news()) == (b"new", b"new")
    assert (notices[:2], sorted(notices[2:])) == (["first", "second"], ["first", "second"])


def test_a_viewer_gets_nothing_of_a_read_that_was_under_way_when_it_came():
    poller, late = Poller(), []

    def read() -> bytes:
        late.append(poller.watch("t", bytes, lambda: None))
        return b"older than the page of the late viewer"

    early = poller.watch("t", read, lambda: None)
    poller._read(early.topic)
    assert (early.take_news(), late[0].take_news()) == (b"older than the page of the late viewer", None)


def test_the_health_is_known_while_all_other_threads_wait():
    async def report_while_busy() -> bool:
        gone = threading.Event()
        waiting = [asyncio.create_task(run_in_threadpool(gone.wait)) for _ in range(100)]
        try:
            is_ok, _ = await HealthBoard([HealthCheck("ledger", lambda: None)]).report(ready=True)
        finally:
            gone.set()
            await asyncio.gather(*waiting)
        return is_ok

    assert asyncio.run(report_while_busy())
