"""Record a run in a ledger: create it, open it for an executor, close it. That is all that a new run needs.

Nothing here imports SQLAlchemy. `RunStore` has the rest.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from weakref import WeakSet

from celeriac.config.ledger_keep import LedgerKeep
from celeriac.errors import InvalidConfig, LedgerUnavailable
from celeriac.executor.interfaces import NO_TRAITS, LedgerTraits
from celeriac.ledger.counts import Counts, count_tasks, encode_counts, unrecorded_of
from celeriac.ledger.file_database import FileDatabase
from celeriac.ledger.inputs import RunInputs, stored_folder, write_inputs
from celeriac.ledger.limits import Removed, may_exceed
from celeriac.ledger.owner import Owner
from celeriac.ledger.prepared import (
    CLOSE_RUN,
    HAS_UNFINISHED,
    INSERT_RUN,
    SELECT_RUN_OF_NAME,
    SELECT_SIMILAR_NAMES,
    SELECT_TOTAL,
    SET_OUTPUT,
    TOUCH_LEDGER,
)
from celeriac.ledger.run_writer import RunLedger
from celeriac.ledger.transactions import AnyTransactions, OnLocked, RowExists, data_folder, plain_path
from celeriac.task.task import Task

if TYPE_CHECKING:
    from celeriac.ledger.statement import AnyConnection

NAME = "name"  # what an error names if a run has the name already


class RunRef(NamedTuple):
    """A run: its row id and its name."""

    id: int
    name: str


class RunRecorder:
    """Records runs in one ledger. Use it as a context manager, or call `close`. It belongs to one process.

    Each method may raise `LedgerUnavailable` and `LedgerBroken`.
    """

    def __init__(self, database: AnyTransactions) -> None:
        self.database = database
        self._owner: Owner | None = None
        self._open_runs: WeakSet[RunLedger] = WeakSet()

    def check_writable(self) -> None:
        """Raise `LedgerUnavailable` if the ledger refuses writes."""
        self.database.write_in_turn(TOUCH_LEDGER.execute)

    # — ownership —

    @property
    def owner(self) -> Owner:
        """The owner in whose name this process writes; registered at first use."""
        if self._owner is None:
            self._owner = Owner(self.database)
        return self._owner

    def release_all(self) -> None:
        """Give up the ownership of all runs. If the ledger is unavailable, others take over when the lease expires."""
        owner, self._owner = self._owner, None
        if owner is not None:
            self.database.write(owner.release_all)

    def close(self) -> None:
        """Give up all runs and close the connections. If the ledger is unavailable, the lease expires instead."""
        with suppress(LedgerUnavailable):
            self.release_all()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # — create, open and close a run —

    def create_run(
        self,
        name: str,
        source: str | None = None,
        content: str | None = None,
        total: int | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> int:
        """Create a run and return its id. `source` is its file, `content` and `total` are as in `set_content`, and
        `inputs` has the fields of `RunInputs`. Raises `InvalidConfig` if the name is taken."""
        row = {"name": name, "source": source, "created": time.time(), "content": content, "total": total}

        def transaction(connection: AnyConnection) -> int:
            run = INSERT_RUN.insert(connection, row)
            if inputs is not None and self.database.has_all_tables:
                write_inputs(connection, run, RunInputs(**inputs))
            return run

        try:
            return self.database.write_in_turn(transaction)
        except RowExists:
            raise name_taken(name) from None

    def set_inputs(self, run: int, inputs: Mapping[str, Any]) -> None:
        """Store the inputs of a run: the fields of `RunInputs`."""
        if self.database.has_all_tables:
            self.database.write_in_turn(lambda connection: write_inputs(connection, run, RunInputs(**inputs)))

    def create_named_run(self, wanted: str, *, is_given: bool, create: Callable[[str], int]) -> RunRef:
        """Create a run under a free name, also while other processes use the same name. Raises what `create` raises."""
        while True:
            name = self.free_name(wanted, is_given=is_given)
            try:
                return RunRef(create(name), name)
            except InvalidConfig as error:
                if is_given or error.setting != NAME:
                    raise

    def free_name(self, wanted: str, *, is_given: bool) -> str:
        """Return a name that no run has: `wanted`, or `wanted` with a number. A name that the user gave stays as it
        is."""
        if is_given:
            return wanted
        with self.database.reading() as connection:
            rows = SELECT_SIMILAR_NAMES.execute(connection, {"pattern": f"{escape_like(wanted)}%"})
            taken = {name for (name,) in rows}
        names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken)

    def open_run(
        self,
        run: int,
        name: str,
        *,
        keeps_events: bool,
        only: Collection[str] | None = None,
        traits: LedgerTraits = NO_TRAITS,
    ) -> RunLedger:
        """Take a run and open it for an executor. With `only`, the executor resumes the unfinished tasks of these keys
        and no others. Raises `InvalidConfig` while another executor has the run."""
        owner = self.owner
        if (live_owner := self.database.write_in_turn(lambda connection: owner.take(connection, run))) is not None:
            raise InvalidConfig(f"run {name!r}", f"is running in {live_owner}", "wait for its end, or name another run")
        opened = RunLedger(
            self.database,
            owner,
            run,
            keeps_events=keeps_events,
            only=only,
            traits=traits,
            on_close=self._close_after,
        )
        self._open_runs.add(opened)
        return opened

    def apply_limits(self, keep: LedgerKeep, *, present: int | None) -> Removed:
        """Remove the runs that exceed a limit, except the `present` one. Raises `LedgerError`."""
        if not may_exceed(self.database, keep, present=present):
            return Removed()
        from celeriac.ledger.keep import apply_limits  # late: it imports SQLAlchemy

        with self.database.complete() as database:
            return apply_limits(database, self.owner, keep, present=present)

    def close_run(self, run: RunLedger, revoked: Iterable[Task] = (), detail: str = "") -> int:
        """Give up the ownership of a run. The run has ended if all its tasks have.

        Of the `revoked` tasks, those that are not recorded yet are recorded with this detail. Return the number of the
        run's tasks that are not recorded, because they were interrupted before. Raises `LedgerError`.
        """
        counts, missing = self._count_recorded(run.run)
        if missing and revoked:
            run.add_revoked(revoked, detail)
            counts, missing = self._count_recorded(run.run)
        ended = None if missing or counts.unfinished else time.time()
        values = {"of_run": run.run, "owner_id": run.owner.id, "ended": ended, "counts": encode_counts(counts)}
        self.database.write_in_turn(lambda connection: CLOSE_RUN.execute(connection, values))
        return missing

    def _count_recorded(self, run: int) -> tuple[Counts, int]:
        """Count the tasks of a run, and those that are not recorded. It takes a second for a large run."""
        with self.database.reading() as connection:
            counts = count_tasks(connection, run)
            total = SELECT_TOTAL.scalar(connection, {"of_run": run})
        return counts, unrecorded_of(total, counts)

    def _close_after(self, run: RunLedger) -> None:
        """Close a run, and with the last open run the connections. The next use opens them again."""
        with suppress(LedgerUnavailable):
            self.close_run(run)
        self._open_runs.discard(run)
        if not self._open_runs:
            self.close()

    # — a run's row —

    def find_run(self, name: str) -> int | None:
        """Return the id of the run of this name; None if there is none."""
        with self.database.reading() as connection:
            run: int | None = SELECT_RUN_OF_NAME.scalar(connection, {"wanted": name})
        return run

    def set_output(self, run: int, folder: Path | None, *, on_workers: bool) -> None:
        """Store the folder of this machine that holds the output of the run's commands, and whether they run on workers
        elsewhere."""
        output = stored_folder(folder, on_workers=on_workers)
        self.database.write_in_turn(lambda c: SET_OUTPUT.execute(c, {"of_run": run, "output": output}))

    def run_folder(self, run: int) -> Path:
        """Return the folder of this machine for the files of a run."""
        return data_folder(self.database.url) / f"run-{run}"

    def is_done(self, run: RunLedger) -> bool:
        """Return whether all tasks of the run have ended."""
        with self.database.reading() as connection:
            return not HAS_UNFINISHED.scalar(connection, {"of_run": run.run})


def open_recorder(
    url: str, *, timeout: float = 2.0, must_exist: bool = False, on_locked: OnLocked | None = None
) -> RunRecorder:
    """Open the ledger of an SQLAlchemy URL to record runs: a file of SQLite without SQLAlchemy.

    The options are those of `Database`. Raises as it does.
    """
    if (path := plain_path(url)) is not None:
        return RunRecorder(FileDatabase(path, must_exist=must_exist, on_locked=on_locked))
    from celeriac.ledger.run_store import RunStore  # late: it imports SQLAlchemy

    return RunStore(url, timeout=timeout, must_exist=must_exist, on_locked=on_locked)


def name_taken(name: str) -> InvalidConfig:
    """Return the error for a name that another run has."""
    return InvalidConfig(NAME, f"there is already a run {name!r}", "give another name")


def escape_like(text: str) -> str:
    """Return a text for the pattern of a LIKE whose escape character is a slash."""
    return text.replace("/", "//").replace("%", "/%").replace("_", "/_")
