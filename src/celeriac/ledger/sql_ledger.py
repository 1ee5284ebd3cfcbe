"""The durable ledger of a Python program: runs in SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from celeriac.ledger.run_recorder import open_recorder
from celeriac.ledger.run_writer import RunLedger
from celeriac.task.tags import parse_tags


class SqlLedger:
    """A database of runs. Each run belongs to one executor at a time.

    Close the run, or the ledger with all its runs; both are context managers:

        with SqlLedger("sqlite:///scheduler.db").open_run("nightly") as run, cluster.executor(ledger=run) as executor:
            executor.recover()

    A ledger that is never closed owns its runs while its process lives. After that another executor can open them: in
    SQLite at once on the same machine, in PostgreSQL when the lease has expired. One ledger object belongs to one
    process: open it after a fork.
    """

    def __init__(self, url: str, *, timeout: float = 2.0, must_exist: bool = False) -> None:
        """Open the ledger; create it unless it `must_exist`.

        `url` is an SQLAlchemy URL such as `sqlite:///PATH`. `timeout` is in seconds and limits each write to a server.
        Raises `InvalidConfig`, `LedgerUnavailable` and `LedgerBroken`.
        """
        self._store = open_recorder(url, timeout=timeout, must_exist=must_exist)

    def open_run(self, name: str, *, keeps_events: bool = True, tags: Sequence[str] = ()) -> RunLedger:
        """Open the run of this name for an executor; create it, with these tags, if there is none.

        With `keeps_events`, the ledger keeps each final event until it is acknowledged: see
        `CeleryExecutor.read_events`. Raises `InvalidConfig` while another executor has the run, `InvalidTask` for bad
        tags, `LedgerUnavailable` and `LedgerBroken`.
        """
        run = self._store.find_run(name)
        if run is None:
            run = self._store.create_run(name, inputs={"tags": parse_tags(list(tags))} if tags else None)
        return self._store.open_run(run, name, keeps_events=keeps_events)

    def close(self) -> None:
        """Give up the ownership of all runs and close the connections. Does nothing when called again."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
