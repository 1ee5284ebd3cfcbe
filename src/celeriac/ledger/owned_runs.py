"""The submitted runs that one process owns, written by one executor: a `Ledger` of several runs.

pending_work: are there runs to take, or requests?
take ─► OwnedRun ─► load, batch by batch ─► executor.recovery.resume ─► write: one transaction for all runs
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec.structs import replace
from sqlalchemy import Connection, bindparam, delete, exists, or_, select, update

from celeriac.config.lease import RENEWAL_INTERVAL
from celeriac.errors import InvalidTask, LedgerUnavailable
from celeriac.executor.interfaces import NO_TRAITS, LedgerBatch, UnfinishedTask
from celeriac.executor.pauses import Pause
from celeriac.ledger.codec import MalformedRow, encode_event, record_row, unfinished_task
from celeriac.ledger.counts import IN_FLIGHT
from celeriac.ledger.database import Database
from celeriac.ledger.idle_runs import take_idle
from celeriac.ledger.many_rows import insert_rows
from celeriac.ledger.owned_run import OwnedRun, RunKey, run_key
from celeriac.ledger.owner import Owner, is_alive
from celeriac.ledger.prepared import UPDATE_TASK_STATE
from celeriac.ledger.resume import final_states
from celeriac.ledger.run_pauses import pauses_of_submitted
from celeriac.ledger.schema import CONTROL_REQUESTS, EARLIER_EVENTS, OWNERS, RUNS, SUBMITTED, TASKS, UNFINISHED
from celeriac.ledger.statements import OF_RUN, OWNER
from celeriac.log_lines import logger_for
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

logger = logger_for(__name__)

MAX_RUNS = 100  # runs taken in one transaction
BATCH_SIZE = 2_000  # tasks loaded in one transaction
LOAD_TIMEOUT = 5.0  # seconds: the tasks in flight are searched among all unfinished ones

DELETE_REQUEST = delete(CONTROL_REQUESTS).where(
    CONTROL_REQUESTS.c.id == bindparam("request"), CONTROL_REQUESTS.c.asked == bindparam("made")
)
UPDATE_NUMBER = update(RUNS).where(RUNS.c.id == OF_RUN).values(number=bindparam("last"))

# Built once: to build them for each look at the ledger took as long as the look itself.
SELECT_REQUESTS = (
    select(CONTROL_REQUESTS.c.id, RUNS.c.name, CONTROL_REQUESTS.c.key, CONTROL_REQUESTS.c.asked)
    .join(RUNS, RUNS.c.id == CONTROL_REQUESTS.c.run)
    .where(RUNS.c.owner == OWNER)
    .order_by(CONTROL_REQUESTS.c.id)
)
SELECT_OTHER_OWNERS = select(OWNERS).where(OWNERS.c.id != OWNER)
SELECT_IDLE_RUN = (
    select(RUNS.c.id)
    .where(SUBMITTED, or_(RUNS.c.owner.is_(None), RUNS.c.owner.not_in(bindparam("alive", expanding=True))))
    .limit(1)
)
LOCK_OWN_RUNS = (
    select(RUNS.c.id)
    .where(RUNS.c.id.in_(bindparam("runs", expanding=True)), RUNS.c.owner == OWNER)
    .order_by(RUNS.c.id)
    .with_for_update()
)
HAS_UNFINISHED = exists().where(TASKS.c.run == OF_RUN, UNFINISHED)
END_RUN = (
    update(RUNS)
    .where(RUNS.c.id == OF_RUN, RUNS.c.owner == OWNER, ~HAS_UNFINISHED)
    .values(ended=bindparam("when"), owner=None)
)
DELETE_REQUESTS = delete(CONTROL_REQUESTS).where(CONTROL_REQUESTS.c.run == OF_RUN, ~HAS_UNFINISHED)


class ControlRequest(NamedTuple):
    """A request to the owner of a run: cancel one task, or all of them."""

    id: int
    """A later request may have the same id: SQLite gives the id of a deleted row again."""

    run: str
    key: str | None
    asked: float
    """When it was made, in seconds since the epoch. With the id it says which request it is."""


@dataclass(frozen=True, slots=True)
class PendingWork:
    """The requests for this owner, and whether there are runs to take."""

    requests: list[ControlRequest] = field(default_factory=list)
    has_idle_runs: bool = False
    pauses: dict[str, dict[str, Pause]] = field(default_factory=dict)
    """The pauses of submitted runs, by run and queue; "" stands for the whole run."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The part of a batch that concerns the owned runs, as rows."""

    runs: dict[int, OwnedRun]
    records: list[dict[str, Any]]
    events: list[dict[str, Any]]
    ends: Counter[tuple[str, State]]
    """How many tasks end, by run and state."""

    ended_runs: list[OwnedRun]
    """Runs whose last tasks end."""


class OwnedRuns:
    """The runs of one owner; none at first. Only one executor may use it.

    Methods that write raise `LedgerUnavailable`, `LedgerLost` and `LedgerBroken`; those that read do not raise
    `LedgerLost`.
    """

    lease: float | None = RENEWAL_INTERVAL
    traits = NO_TRAITS

    def __init__(self, database: Database, owner: Owner, output: str | None = None) -> None:
        """`output` is the folder of this machine for the output of commands, as the rows of runs have it."""
        self._database, self._owner, self._output = database, owner, output
        self._runs: dict[str, OwnedRun] = {}
        self._ended: list[OwnedRun] = []
        self._may_have_taken = False
        """Whether the reply to `take` was lost: the ledger may give this owner runs that `_runs` lacks."""

    # — for the executor: a `Ledger` —

    def check(self, task: Task) -> None:
        """Refuse every task: they come from the ledger alone."""
        raise InvalidTask("key", f"{task.key!r} does not belong to a submitted run", "submit it to the ledger")

    def next_place(self, number: int = 1) -> int:
        """Return zero: no task is queued."""
        return 0

    def write(self, batch: LedgerBatch) -> None:
        changes = self._changes_of(batch)

        def transaction(connection: Connection) -> None:
            self._owner.renew_or_raise(connection)
            if changes.runs:
                self._apply(connection, changes, batch.last_number)

        self._database.write(transaction)
        for (name, state), number in changes.ends.items():
            self._runs[name].ended[state] += number
        for run in changes.ended_runs:
            self._release(run)

    def unfinished(self) -> Iterable[UnfinishedTask]:
        """Return nothing: `load` gives the tasks."""
        return ()

    def numbers(self) -> tuple[int, int]:
        """Return zeros: `OwnedRun.number_offset` continues the numbers of each run."""
        return 0, 0

    def unacknowledged(self) -> Iterable[Event]:
        """Return nothing: the events of submitted runs are not acknowledged."""
        return ()

    def _changes_of(self, batch: LedgerBatch) -> Changes:
        all_records = ((run_key(key), record) for key, record in batch.records.items())
        records = {key: record for key, record in all_records if key.run in self._runs}
        events = [event for event in batch.events if not event.state.is_final and run_key(event.key).run in self._runs]
        keys = (*records, *(run_key(event.key) for event in events))
        runs = {self._runs[key.run].id: self._runs[key.run] for key in keys}
        ends = Counter((key.run, record.state) for key, record in records.items() if record.state.is_final)
        ends_of_run = Counter[str]()
        for (name, _), number in ends.items():
            ends_of_run[name] += number
        return Changes(
            runs=runs,
            records=[record_row(self._runs[key.run].id, key.key, record) for key, record in records.items()],
            events=[self._event_row(event) for event in events],
            ends=ends,
            ended_runs=[run for run in runs.values() if run.is_loaded and run.unfinished <= ends_of_run[run.name]],
        )

    def _apply(self, connection: Connection, changes: Changes, last_number: int) -> None:
        # After a lost reply a run may have ended already, and another process may own it.
        of_owner = {"runs": list(changes.runs), "owner_id": self._owner.id}
        ours = set(connection.execute(LOCK_OWN_RUNS, of_owner).scalars())
        UPDATE_TASK_STATE.execute_many(connection, [row for row in changes.records if row["of_run"] in ours])
        insert_rows(connection, EARLIER_EVENTS, [row for row in changes.events if row["run"] in ours])
        if ours:
            offsets = {run: changes.runs[run].number_offset for run in sorted(ours)}
            numbers = [{"of_run": run, "last": offset + last_number} for run, offset in offsets.items()]
            connection.execute(UPDATE_NUMBER, numbers)
        for run in changes.ended_runs:
            end_if_done(connection, run.id, self._owner.id)

    def _event_row(self, event: Event) -> dict[str, Any]:
        key = run_key(event.key)
        run = self._runs[key.run]
        return {"run": run.id, "number": run.number_offset + event.number, "key": key.key, "event": encode_event(event)}

    # — for the service —

    @property
    def runs(self) -> Iterable[OwnedRun]:
        """The owned runs."""
        return self._runs.values()

    def get(self, name: str) -> OwnedRun | None:
        """Return the owned run of this name."""
        return self._runs.get(name)

    def take_ended(self) -> list[OwnedRun]:
        """Return the runs that have ended since the last call. They are no longer owned."""
        ended, self._ended = self._ended, []
        return ended

    def pending_work(self) -> PendingWork:
        """Return the requests for this owner, and whether there are runs to take. Changes nothing."""

        def query(connection: Connection) -> PendingWork:
            this_owner = {"owner_id": self._owner.id}
            requests = [ControlRequest(*row) for row in connection.execute(SELECT_REQUESTS, this_owner)]
            owners = connection.execute(SELECT_OTHER_OWNERS, this_owner).all()
            alive = [self._owner.id, *(owner.id for owner in owners if is_alive(connection, owner))]
            idle = connection.execute(SELECT_IDLE_RUN, {"alive": alive}).first()
            pauses = pauses_of_submitted(connection) if self._database.has_all_tables else {}
            return PendingWork(requests, idle is not None or self._may_have_taken, pauses)

        return self._database.read(query)

    def take(self, *, from_dead: bool) -> list[OwnedRun]:
        """Take submitted runs that have no owner; with `from_dead`, those of dead owners, too. Return them."""

        def transaction(connection: Connection) -> list[OwnedRun]:
            rows = take_idle(connection, self._owner, MAX_RUNS, from_dead=from_dead, include_own=self._may_have_taken)
            taken = [
                OwnedRun(row.id, row.name, row.number, row.total, previous_owner)
                for row, previous_owner in rows
                if row.name not in self._runs
            ]
            if taken and self._output is not None:
                is_taken = RUNS.c.id.in_([run.id for run in taken])
                connection.execute(update(RUNS).where(is_taken).values(output=self._output))
            return taken

        try:
            taken = self._database.write(transaction)
        except LedgerUnavailable:
            self._may_have_taken = True
            raise
        self._may_have_taken = False
        self._runs.update((run.name, run) for run in taken)
        return taken

    def load(self, run: OwnedRun) -> list[UnfinishedTask]:
        """Return the next unfinished tasks of a run: first those in flight, then the waiting ones by priority. Sets
        `is_loaded` with the last of them."""

        def query(connection: Connection) -> list[Any]:
            return waiting_rows(connection, run) if run.is_loading_waiting else in_flight_rows(connection, run)

        rows = self._database.read(query, LOAD_TIMEOUT)
        tasks, malformed = decode_unfinished(run, rows)
        if malformed:
            self._fail_malformed(run, malformed)
        readable_keys = {row.key for row in rows} - malformed.keys()
        loaded = run.add_batch(rows, is_last=len(rows) < BATCH_SIZE)
        run.loaded -= sum(row.key not in readable_keys for row in loaded)
        return [tasks[row.key] for row in loaded if row.key in readable_keys]

    def _fail_malformed(self, run: OwnedRun, malformed: Mapping[str, MalformedRow]) -> None:
        """End the tasks whose rows cannot be decoded, so that their run can end."""
        for error in malformed.values():
            logger.warning("run %r: %s; the task fails", run.name, error)

        def transaction(connection: Connection) -> None:
            self._owner.renew_or_raise(connection)
            of_run = (TASKS.c.run == run.id, TASKS.c.key.in_(list(malformed)))
            ended = {"state": State.FAILED.value, "reason": Reason.WORKER_ERROR.value, "moved": time.time()}
            detail = "its row in the ledger is malformed"
            connection.execute(update(TASKS).where(*of_run).values(**ended, detail=detail, revoking=False))

        self._database.write(transaction)

    def dependency_states(self, run: OwnedRun, tasks: Iterable[Task]) -> dict[TaskKey, State]:
        """Return the final states of the run's tasks on which the given tasks depend."""
        keys = {run_key(need).key for task in tasks for need in task.needs}
        states = self._database.read(lambda connection: final_states(connection, run.id, keys), LOAD_TIMEOUT)
        return {RunKey(run.name, str(key)): state for key, state in states.items()}

    def end_run(self, run: OwnedRun) -> None:
        """End a run that has no unfinished tasks."""

        def transaction(connection: Connection) -> None:
            self._owner.renew_or_raise(connection)
            end_if_done(connection, run.id, self._owner.id)

        self._database.write(transaction)
        self._release(run)

    def acknowledge(self, requests: Iterable[ControlRequest]) -> None:
        """Delete requests that were handled."""
        handled = [{"request": request.id, "made": request.asked} for request in requests]

        def transaction(connection: Connection) -> None:
            self._owner.renew_or_raise(connection)
            connection.execute(DELETE_REQUEST, handled)

        self._database.write(transaction)

    def _release(self, run: OwnedRun) -> None:
        del self._runs[run.name]
        self._ended.append(run)


def decode_unfinished(run: OwnedRun, rows: Iterable[Any]) -> tuple[dict[str, UnfinishedTask], dict[str, MalformedRow]]:
    """Return the tasks of the rows, and the errors of the rows that are malformed; both by key."""
    tasks: dict[str, UnfinishedTask] = {}
    malformed: dict[str, MalformedRow] = {}
    for row in rows:
        try:
            tasks[row.key] = unfinished_task_of(run, row)
        except MalformedRow as error:
            malformed[row.key] = error
    return tasks, malformed


def unfinished_task_of(run: OwnedRun, row: Any) -> UnfinishedTask:
    """Return the task of a row. Its key and the keys that it needs become `RunKey`s."""
    unfinished = unfinished_task(RunKey(run.name, row.key), row)
    if not unfinished.task.needs:
        return unfinished
    needs = tuple(RunKey(run.name, str(need)) for need in unfinished.task.needs)
    return replace(unfinished, task=replace(unfinished.task, needs=needs))


def end_if_done(connection: Connection, run: int, owner: int) -> None:
    """If all tasks of the run have ended, end the run, give it up, and delete its requests."""
    connection.execute(END_RUN, {"of_run": run, "owner_id": owner, "when": time.time()})
    connection.execute(DELETE_REQUESTS, {"of_run": run})


def in_flight_rows(connection: Connection, run: OwnedRun) -> list[Any]:
    """Return the next tasks in flight, in the order in which they were queued."""
    after = -1 if run.load_position is None else run.load_position[1]
    rows = select(TASKS).where(TASKS.c.run == run.id, UNFINISHED, TASKS.c.state.in_(IN_FLIGHT), TASKS.c.place > after)
    return list(connection.execute(rows.order_by(TASKS.c.place).limit(BATCH_SIZE)))


def waiting_rows(connection: Connection, run: OwnedRun) -> list[Any]:
    """Return the next waiting tasks by priority and place. Uses two queries: each can read its rows in index order."""
    waiting = select(TASKS).where(TASKS.c.run == run.id, UNFINISHED, TASKS.c.state == State.WAITING.value)
    rows: list[Any] = []
    if run.load_position is not None:
        priority, place = run.load_position
        same_priority = waiting.where(TASKS.c.priority == priority, TASKS.c.place > place).order_by(TASKS.c.place)
        rows += connection.execute(same_priority.limit(BATCH_SIZE))
        waiting = waiting.where(TASKS.c.priority < priority)
    if len(rows) < BATCH_SIZE:
        lower_priority = waiting.order_by(TASKS.c.priority.desc(), TASKS.c.place)
        rows += connection.execute(lower_priority.limit(BATCH_SIZE - len(rows)))
    return rows
