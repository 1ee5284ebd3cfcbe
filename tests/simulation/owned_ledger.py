"""The ledger that several `serve` share: the real SQL of owners and runs, on a SQLite in memory behind the network.

A transaction holds the lock of the whole ledger. A fault may strike while it does: its process dies, and nothing of the
transaction is left; or it is frozen, and the others are told that the ledger is locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, StaticPool, create_engine

from celeriac.errors import LedgerError, LedgerLocked, LedgerUnavailable
from celeriac.ledger.database import Database
from celeriac.ledger.file_database import LOCK_TIMEOUT
from celeriac.ledger.run_recorder import RunRecorder
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schema import TABLES, migrate
from celeriac.ledger.transactions import Transactions
from celeriac.server_errors import problem_of
from tests.simulation.network import Server
from tests.simulation.primitives import here, sleep
from tests.simulation.world import EPOCH, SimThread, World

if TYPE_CHECKING:
    from tests.simulation.history import History

T = TypeVar("T")
URL = "sqlite:///simulated"
POINTS = {"OwnedRuns.take": "take run", "OwnedRuns.acknowledge": "acknowledge request", "Owner.release_all": "give up"}
"""The transactions that a fault may hit apart from others, by the method that makes them."""

LEDGER_TABLES = [table.name for table in TABLES.sorted_tables if table.name != "celeriac_ledger"]


@cache
def the_connection() -> Connection:
    """Return the one connection of this process. Each history begins with empty tables."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"isolation_level": None})
    connection = engine.connect()
    migrate(connection)
    return connection


class LedgerServer(Server):
    """The server, or the file, that all owners write. `kind` is "server" or "file"."""

    def __init__(self, world: World, kind: str) -> None:
        super().__init__(world, "ledger")
        self.kind = kind
        self.clock_offset = 0.0
        """How far a server's clock, or that of the machine with the file, has jumped."""

        self.locked_by: SimThread | None = None
        self.transaction_time: float | None = None
        """The time that the transaction of this moment has read."""

        self.raw: Any = the_connection().connection.dbapi_connection
        for table in (*LEDGER_TABLES, "sqlite_sequence"):
            self.raw.execute(f"DELETE FROM {table}")

    def time(self) -> float:
        """Return what the clock of the server shows."""
        return EPOCH + self.clock_offset + self.world.now if self.transaction_time is None else self.transaction_time


class SimulatedDatabase(Database):
    """The connections of one process to the ledger."""

    def __init__(self, history: History, *, is_near: bool = False) -> None:
        """One that `is_near` meets no faults of the network."""
        Transactions.__init__(self, URL, None)
        self._history, self._is_near = history, is_near
        self.has_all_tables = any(feature.needs_inputs for feature in history.features)
        self._server: LedgerServer = history.owners.server

    def write(self, transaction: Callable[[Connection], T]) -> T:
        return self._ask(transaction, writes=True)

    def read(self, query: Callable[[Connection], T], timeout: float | None = None) -> T:
        return self._ask(query, writes=False)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        self._ask(lambda connection: None, writes=False)
        with self._transaction() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        self._ask(lambda connection: None, writes=False)
        with self._transaction() as connection:
            yield connection

    def close(self) -> None:
        """The one connection stays."""

    def _ask(self, transaction: Callable[[Connection], T], *, writes: bool) -> T:
        if self._is_near:
            return self._transact(transaction)
        replies: list[T] = []

        def call() -> T:
            """Make the transaction once, although the network may double a packet: a connection has an order."""
            if not replies:
                replies.append(self._in_lock(transaction) if writes else self._transact(transaction))
            return replies[0]

        point = POINTS.get(transaction.__qualname__.partition(".<locals>")[0], "ledger" if writes else "look up")
        try:
            return self._history.network.call(self._server, call, point, writes=writes)
        except LedgerError:
            raise
        except Exception as error:
            if problem_of(error) is None:
                raise
            raise LedgerUnavailable("simulated", "does not answer") from error

    def _in_lock(self, transaction: Callable[[Connection], T]) -> T:
        server, thread = self._server, here()
        if server.locked_by is not None:
            sleep(LOCK_TIMEOUT)
            if server.locked_by is not None:
                raise LedgerLocked("simulated", "is locked by another process")
        server.locked_by, time = thread, server.time()
        try:
            if self._history.network.strikes:
                self._history.network.meet("transaction", server)
            server.transaction_time = time
            return self._transact(transaction)
        finally:
            server.locked_by = server.transaction_time = None

    def _transact(self, transaction: Callable[[Connection], T]) -> T:
        with self._transaction() as connection:
            return transaction(connection)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        raw = self._server.raw
        with self._translate_errors():
            raw.execute("BEGIN")
            try:
                yield the_connection()
            except BaseException:
                raw.execute("ROLLBACK")
                raise
            raw.execute("COMMIT")
        self._history.owners.watch.committed()


class SimulatedStore(RunStore):
    """The runs of the ledger, for one process."""

    def __init__(self, history: History, *, is_near: bool = False) -> None:
        RunRecorder.__init__(self, SimulatedDatabase(history, is_near=is_near))
