"""The stores that carry the output of commands: one suite for every kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import insert

from celeriac.backend.outputs import END, WINDOW, Chunk, OutputStore, Progress, output_store_for
from celeriac.broker.app import make_app
from celeriac.worker import output_sender
from celeriac.worker.output_sender import OutputSender

pytestmark = pytest.mark.celery


@pytest.fixture(params=["redis", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[OutputStore]:
    match request.param:
        case "sqlite":
            url = f"db+sqlite:///{tmp_path}/results.db"
        case "postgres":
            url = request.getfixturevalue("postgres").url
        case _:
            url = request.getfixturevalue("shared_redis").url
    with closing(make_app(broker_url="memory://", result_backend=url)) as app:
        store = output_store_for(app, timeout=5.0)
        assert store is not None
        with closing(store):
            store.delete(["a", "b"])
            yield store


def put(store: OutputStore, offset: int, data: bytes = b"", *, stream: int = 1, token: int = 1, read: int = 0) -> Any:
    return store.put("a", token, Chunk(offset, stream, data), read=read)


def test_chunks_come_in_order_and_are_removed_when_they_were_read(store):
    assert [put(store, 0, b"x\0").written, put(store, 2, b"\xff", stream=2).written] == [2, 3]
    found = store.chunks(["a", "b"])
    assert found == {"a": (Progress(1, 0, 3), [Chunk(0, 1, b"x\0"), Chunk(2, 2, b"\xff")])}
    store.acknowledge(found)
    store.acknowledge(found)  # as a process does that was suspended meanwhile
    assert put(store, 3, stream=END).accepted
    assert store.progress(["a", "b"]) == {"a": Progress(1, 3, 3)}
    assert store.chunks(["a"])["a"][1] == [Chunk(3, END, b"")]
    store.delete(["a"])
    assert store.progress(["a"]) == {}


def test_a_chunk_that_comes_twice_or_too_early_is_not_taken(store):
    put(store, 0, b"ab")
    again, early = put(store, 0, b"ab"), put(store, 5, b"f")
    assert (again.accepted, again.written, early.accepted, early.written) == (False, 2, False, 2)


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_a_chunk_whose_first_transaction_ends_late_is_taken_once(store, monkeypatch):
    def insert_late(table: Any) -> Any:
        monkeypatch.undo()
        put(store, 3, b"def")
        return insert(table)

    sender = OutputSender(store, "a", 1, read_timeout=1.0)
    sender.take(1, b"abc")
    monkeypatch.setattr("celeriac.backend.outputs.database.insert", insert_late)
    sender.take(1, b"def")
    sender.end()
    assert store.chunks(["a"])["a"][1] == [Chunk(0, 1, b"abc"), Chunk(3, 1, b"def"), Chunk(6, END, b"")]


def test_the_end_of_an_output_may_come_twice(store):
    assert [put(store, 0, stream=END).accepted for _ in range(2)] == [True, True]


def test_unread_bytes_are_limited(store):
    half = bytes(WINDOW // 2)
    assert [put(store, n * len(half), half).accepted for n in range(3)] == [True, True, False]
    store.acknowledge(store.chunks(["a"]))
    assert put(store, WINDOW, bytes(2 * WINDOW)).accepted  # one chunk is always taken


def test_a_later_claim_begins_anew_and_ends_the_earlier_one(store):
    put(store, 0, b"old")
    assert put(store, 0, b"new", token=2).written == 3
    assert put(store, 3, b"old").is_superseded
    assert store.chunks(["a"])["a"] == (Progress(2, 0, 3), [Chunk(0, 1, b"new")])


def test_a_sender_sends_again_what_a_server_has_lost(store):
    sender = OutputSender(store, "a", 1)
    for data in (b"one", b"two"):
        sender.take(1, data)
    store.acknowledge({"a": (Progress(1, 0, 6), [Chunk(0, 1, b"one")])})
    sender.take(2, b"three")
    store.delete(["a"])
    sender.end()
    progress, chunks = store.chunks(["a"])["a"]
    assert progress == Progress(1, 3, 11)
    assert chunks == [Chunk(3, 1, b"two"), Chunk(6, 2, b"three"), Chunk(11, END, b"")]


def test_a_sender_goes_on_where_the_reader_is_after_a_server_has_returned_to_an_earlier_state(store):
    sender = OutputSender(store, "a", 1, read_timeout=1.0)
    for data in (b"one", b"two", b"three"):
        sender.take(1, data)
        store.acknowledge(store.chunks(["a"]))
    sender.take(1, b"four")
    store.delete(["a"])
    put(store, 0, b"one")  # as in the snapshot from which the server has started
    sender.end()
    progress, chunks = store.chunks(["a"])["a"]
    assert (progress.written, chunks[-1].stream) == (15, END)
    assert b"".join(chunk.data for chunk in chunks).endswith(b"four")


def test_a_sender_drops_what_is_not_read_or_is_of_a_task_that_runs_elsewhere(store, monkeypatch):
    monkeypatch.setattr(output_sender, "MIN_PAUSE", 0.0)
    for sender in (
        OutputSender(store, "a", 1, read_timeout=0.0),
        OutputSender(store, "b", 1, should_stop=lambda: True),
    ):
        for _ in range(3):
            sender.take(1, bytes(WINDOW // 2))
        sender.end()
    progress = store.progress(["a", "b"])
    assert [progress[task_id].written for task_id in ("a", "b")] == [WINDOW, WINDOW]
    assert all(chunk.stream != END for _, chunks in store.chunks(["a", "b"]).values() for chunk in chunks)
