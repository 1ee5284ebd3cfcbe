"""Check what must hold of the ledger that several `serve` share, after each transaction.

Only the owner of a run writes its tasks, and sends them. No run is taken from an owner that is alive and could renew
its lease. A task that has ended stays as it is. A run ends with its last task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celeriac.config.lease import LEASE_DURATION
from celeriac.executor.executor import CeleryExecutor
from celeriac.ledger.codec import decode_event
from celeriac.ledger.owned_run import RunKey, run_key
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task
from tests.simulation.primitives import here
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.history import History

TASK_ROWS = "SELECT run, key, id, attempt, state, reason, detail FROM celeriac_task"
RUN_ROWS = "SELECT id, name, owner, ended FROM celeriac_run"
OWNER_ROWS = "SELECT id, until FROM celeriac_owner"
NEW_EVENTS = "SELECT rowid, run, number, key, event FROM celeriac_move WHERE rowid > ? ORDER BY rowid"
RENEWS_WITHIN = LEASE_DURATION / 2  # seconds in which an owner that nothing hinders renews its lease, by far


@dataclass
class Rows:
    """Hold the rows of the ledger at one moment."""

    tasks: dict[tuple[int, str], tuple[str, int, str, str | None, str | None]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    owners_of_runs: dict[int, int | None] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    owners: dict[int, float] = field(default_factory=dict)


class LedgerWatch:
    """Compares the ledger before and after each transaction."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._rows = Rows()
        self._changes = self._last_event = 0
        self._numbers: dict[tuple[int, str], int] = {}
        """The number of the last stored event of each task."""

        self.process_of: dict[int, Process] = {}
        """The process of each owner, by the id of its row."""

        self._owned: dict[Process, set[str]] = {}
        """The runs that each process owned when it last wrote."""

    def committed(self) -> None:
        """Look at what the transaction of this process has left."""
        raw = self._history.owners.server.raw
        if raw.total_changes == self._changes:
            return
        self._changes = raw.total_changes
        before, after = self._rows, self._read(raw)
        self._rows = after
        writer = here().process
        for owner in after.owners.keys() - before.owners.keys():
            self.process_of[owner] = writer
        self._check_owners(before, after, writer)
        self._check_tasks(before, after, writer)
        self._read_events(raw)
        self._owned[writer] = {
            after.names[run] for run, owner in after.owners_of_runs.items() if self._is_of(owner, writer)
        }

    def _is_of(self, owner: int | None, process: Process) -> bool:
        return owner is not None and self.process_of[owner] is process

    def published(self, tasks: Sequence[Task], executor: CeleryExecutor) -> None:
        """Check tasks that a process is about to send."""
        process = here().process
        for task in tasks:
            if run_key(task.key).run not in self._owned[process]:
                self._history.fail(f"{task.key} is sent by {process.name}, which had lost its run when it last wrote")
        new = [task for task in tasks if not executor._lifecycle.unconfirmed.get(task.key)]
        if new and executor.slots_occupied > self._history.parallelism:
            self._history.fail(f"{new[0].key} is sent while {executor.slots_occupied} slots are occupied")

    def check_end(self) -> None:
        """Check the ledger once all tasks have ended."""
        if unended := self._rows.names.keys() - self._rows.ended:
            self._history.fail(f"all tasks have ended, and not run {self._rows.names[min(unended)]}")

    @staticmethod
    def _read(raw: Any) -> Rows:
        rows = Rows()
        for run, key, *rest in raw.execute(TASK_ROWS):
            rows.tasks[run, key] = tuple(rest)
        for run, name, owner, ended in raw.execute(RUN_ROWS):
            rows.names[run], rows.owners_of_runs[run] = name, owner
            if ended is not None:
                rows.ended.add(run)
        rows.owners = dict(raw.execute(OWNER_ROWS).fetchall())
        return rows

    def _check_owners(self, before: Rows, after: Rows, writer: Process) -> None:
        history = self._history
        for gone in before.owners.keys() - after.owners.keys():
            if not self._is_of(gone, writer) and (problem := self._why_alive(gone, before.owners[gone])):
                history.fail(f"{writer.name} takes {self.process_of[gone].name} for dead, {problem}")
        for run, owner in after.owners_of_runs.items():
            earlier = before.owners_of_runs.get(run)
            if owner == earlier:
                continue
            if owner is not None and owner not in after.owners:
                history.fail(f"{after.names[run]} is given to an owner without a row")
            if earlier in after.owners and not self._is_of(earlier, writer):
                history.fail(f"{writer.name} takes {after.names[run]} from an owner that has a row")
            verb = "gives up" if owner is None else "takes"
            history.tell(f"{writer.name} {verb} {after.names[run]} as owner {owner}, after {earlier}")

    def _why_alive(self, owner: int, until: float) -> str | None:
        """Return why an owner counts as alive; None if it may be taken for dead."""
        owners = self._history.owners
        quiet = owners.quiet_for(self.process_of[owner])
        if quiet > LEASE_DURATION + RENEWS_WITHIN:
            return f"although nothing has hindered it for {quiet:.1f} s"
        is_by_lease = owners.server.kind == "server" or owners.has_containers
        if is_by_lease and until > owners.server.time():
            return f"{until - owners.server.time():.1f} s before its lease ends"
        return None

    def _check_tasks(self, before: Rows, after: Rows, writer: Process) -> None:
        history, names = self._history, after.names
        for (run, key), row in after.tasks.items():
            was = before.tasks.get((run, key))
            if was == row or was is None:
                continue
            owner = before.owners_of_runs[run]
            is_client = writer is history.owners.client and after.owners_of_runs[run] is None
            if not is_client and (owner not in before.owners or not self._is_of(owner, writer)):
                history.fail(f"{writer.name} writes {names[run]}/{key}, which it does not own")
            task_id, attempt, state, reason, detail = row
            if State(was[2]).is_final:
                history.fail(f"{names[run]}/{key} has ended twice: {was} and {row}")
            event = Event(
                key=RunKey(names[run], key),
                state=State(state),
                when=0.0,
                id=task_id if attempt == 1 else f"{task_id}.{attempt}",
                attempt=attempt,
                reason=None if reason is None else Reason(reason),
                detail=detail,
            )
            history.invariants.told(event)
            if event.reason in (Reason.LOST, Reason.POISON) and event.state is State.FAILED:
                history.invariants.check_fenced(event)

    def _read_events(self, raw: Any) -> None:
        """Take the ends of attempts, after each of which another one may start."""
        rows: Sequence[tuple[int, int, int, str, str]] = raw.execute(NEW_EVENTS, (self._last_event,)).fetchall()
        for row_id, run, number, key, text in rows:
            self._last_event = row_id
            event = decode_event(RunKey(self._rows.names[run], key), number, text)
            if number <= self._numbers.get(key_of_run := (run, key), 0):
                self._history.fail(f"event {number} of {event.key} follows event {self._numbers[key_of_run]}")
            self._numbers[key_of_run] = number
            if event.state is not State.WAITING or event.reason is None:
                continue
            job = self._history.jobs[str(event.key)]
            job.attempts_ended.add(number)
            for feature in self._history.features:
                feature.told(job, event)
            if event.reason in (Reason.LOST, Reason.POISON):
                self._history.invariants.check_fenced(event)
