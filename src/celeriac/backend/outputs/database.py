"""Output in a database.

celeriac_output        a row for each unread chunk
celeriac_output_state  a row for each attempt: the token of its claim, and how many bytes were read and written
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from celery import Celery
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    delete,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DatabaseError, IntegrityError

from celeriac.backend.claims.claim import CLAIM_KEPT
from celeriac.backend.outputs.chunk import END, WINDOW, Chunk, Progress, Reply
from celeriac.backend.per_process import PerProcess
from celeriac.backend.results.database import make_engine, make_missing_tables

CLEANING_INTERVAL = 3600.0  # seconds between two deletions of expired rows
POOL = {"pool_size": 4, "max_overflow": 0, "pool_timeout": 600}
"""Hundreds of commands may write at once: they share few connections."""

MAX_DATA = 1024 * 1024  # bytes of a chunk, for databases that want to know

TABLES = MetaData()
CHUNKS = Table(
    "celeriac_output",
    TABLES,
    Column("task_id", String(255), primary_key=True),
    Column("token", BigInteger, primary_key=True, autoincrement=False),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("stream", Integer, nullable=False),
    Column("data", LargeBinary(MAX_DATA), nullable=False),
    Column("at", Float(53), nullable=False),
)
STATES = Table(
    "celeriac_output_state",
    TABLES,
    Column("task_id", String(255), primary_key=True),
    Column("token", BigInteger, nullable=False),
    Column("taken", BigInteger, nullable=False),
    Column("written", BigInteger, nullable=False),
    Column("at", Float(53), nullable=False),
)
T = TypeVar("T")


class DatabaseOutputs:
    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation."""
        self._engine = PerProcess(lambda: make_engine(app.backend, timeout, **POOL))
        self._next_cleaning = time.monotonic()

    def put(self, task_id: str, token: int, chunk: Chunk, *, read: int) -> Reply:
        def write(connection: Connection) -> Reply:
            state = connection.execute(select(STATES).where(STATES.c.task_id == task_id)).one_or_none()
            if state is not None and state.token > token:
                return Reply(accepted=False, read=0, written=0, is_superseded=True)
            if state is None or state.token < token or state.written < read:  # the last if the server has lost some
                begin(connection, task_id, token, read)
                taken = written = read
            else:
                taken, written = state.taken, state.written
            end = written + len(chunk.data)
            if chunk.offset != written or (written > taken and end - taken > WINDOW):
                return Reply(accepted=False, read=taken, written=written)
            if chunk.stream == END and has_end(connection, task_id, token):
                return Reply(accepted=True, read=taken, written=written)
            values = {"task_id": task_id, "token": token, "at": time.time()}
            connection.execute(insert(CHUNKS).values(**values, start=written, stream=chunk.stream, data=chunk.data))
            connection.execute(update(STATES).where(STATES.c.task_id == task_id).values(written=end, at=values["at"]))
            return Reply(accepted=True, read=taken, written=end)

        try:
            return self._run(write)
        except IntegrityError:  # a transaction whose reply took too long has come to its end meanwhile
            return self._run(write)

    def progress(self, ids: Sequence[str]) -> Mapping[str, Progress]:
        self._clean()
        return self._run(lambda connection: all_progress(connection, ids))

    def chunks(self, ids: Sequence[str]) -> Mapping[str, tuple[Progress, Sequence[Chunk]]]:
        def read(connection: Connection) -> Mapping[str, tuple[Progress, Sequence[Chunk]]]:
            found: dict[str, tuple[Progress, list[Chunk]]] = {
                task_id: (progress, []) for task_id, progress in all_progress(connection, ids).items()
            }
            query = select(CHUNKS).where(CHUNKS.c.task_id.in_(ids)).order_by(CHUNKS.c.task_id, CHUNKS.c.start)
            for row in connection.execute(query):
                progress, chunks = found.get(row.task_id, (None, []))
                if progress is not None and row.token == progress.token and row.start >= progress.read:
                    chunks.append(Chunk(row.start, row.stream, bytes(row.data)))
            return found

        return self._run(read)

    def acknowledge(self, taken: Mapping[str, tuple[Progress, Sequence[Chunk]]]) -> None:
        def write(connection: Connection) -> None:
            for task_id, (progress, chunks) in taken.items():
                if not chunks:
                    continue
                read = chunks[-1].end
                is_unread = (STATES.c.token == progress.token) & (STATES.c.taken == progress.read)
                state = update(STATES).where(STATES.c.task_id == task_id, is_unread)
                if connection.execute(state.values(taken=read)).rowcount:
                    of_claim = (CHUNKS.c.task_id == task_id) & (CHUNKS.c.token == progress.token)
                    connection.execute(delete(CHUNKS).where(of_claim, CHUNKS.c.start < read))

        if any(chunks for _, chunks in taken.values()):
            self._run(write)

    def delete(self, ids: Collection[str]) -> None:
        if ids:
            self._run(lambda connection: forget(connection, lambda table: table.c.task_id.in_(ids)))

    def close(self) -> None:
        if (engine := self._engine.take()) is not None:
            engine.dispose()

    def _clean(self) -> None:
        """Delete rows that were not read in a day."""
        if time.monotonic() < self._next_cleaning:
            return
        self._next_cleaning = time.monotonic() + CLEANING_INTERVAL
        before = time.time() - CLAIM_KEPT
        self._run(lambda connection: forget(connection, lambda table: table.c.at < before))

    def _run(self, transaction: Callable[[Connection], T]) -> T:
        """Run a transaction. Create the tables if they are missing."""
        try:
            return self._transact(transaction)
        except DatabaseError as error:
            if error.connection_invalidated or not make_missing_tables(self._engine.get(), TABLES):
                raise
            return self._transact(transaction)

    def _transact(self, transaction: Callable[[Connection], T]) -> T:
        with self._engine.get().begin() as connection:
            if connection.dialect.name == "postgresql":
                # What a crash of the server loses, the sender sends again. A result is flushed with all before it.
                connection.execute(text("SET LOCAL synchronous_commit TO OFF"))
            return transaction(connection)


def begin(connection: Connection, task_id: str, token: int, read: int) -> None:
    """Begin the output of an attempt anew."""
    forget(connection, lambda table: table.c.task_id == task_id)
    row = {"task_id": task_id, "token": token, "taken": read, "written": read, "at": time.time()}
    connection.execute(insert(STATES).values(**row))


def forget(connection: Connection, condition: Callable[[Table], Any]) -> None:
    """Delete the rows of both tables that meet a condition."""
    for table in (CHUNKS, STATES):
        connection.execute(delete(table).where(condition(table)))


def has_end(connection: Connection, task_id: str, token: int) -> bool:
    """Return whether the output of a claim is complete."""
    of_claim = (CHUNKS.c.task_id == task_id) & (CHUNKS.c.token == token)
    return connection.execute(select(CHUNKS.c.start).where(of_claim, CHUNKS.c.stream == END)).first() is not None


def all_progress(connection: Connection, ids: Sequence[str]) -> dict[str, Progress]:
    rows = connection.execute(select(STATES).where(STATES.c.task_id.in_(ids)))
    return {row.task_id: Progress(row.token, row.taken, row.written) for row in rows}
