"""Run the worker while the executor reads results or waits for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from celeriac.backend.claims.memory import MemoryClaims
from celeriac.cluster.local.journal import Journal
from celeriac.cluster.local.result_store import ResultStore
from celeriac.cluster.local.supervisor_pool import SupervisorPool
from celeriac.cluster.local.worker import LocalWorker
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result


class LocalEngine:
    """The executor's `ResultReader` and `Revoker`. Only `wake` may be called from another thread."""

    is_durable = True
    pushes = True
    answered = True

    def __init__(
        self,
        *,
        worker: LocalWorker,
        supervisors: SupervisorPool,
        store: ResultStore,
        claims: MemoryClaims,
        journal: Journal | None,
    ) -> None:
        self._worker, self._supervisors = worker, supervisors
        self._store, self._claims, self._journal = store, claims, journal
        self.has_ledger = False
        """Whether the ledger holds the end of each task that `forget` is called for."""

    def changed(self) -> Collection[str]:
        self._supervisors.poll(0)
        self._worker.work()  # after the poll, so that the start of a task is reported before its end
        return self._store.take_changed()

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        return self._store.read(ids)

    def forget(self, ids: Collection[str]) -> None:
        self._store.forget(ids)
        self._claims.forget(ids)
        if self._journal is not None and self.has_ledger:
            self._journal.prune(self._is_needed)

    def _is_needed(self, task_id: str) -> bool:
        """Return whether the journal must keep this task: the executor may ask for it, or the ledger lacks its end."""
        return self._claims.knows(task_id) or (self._journal is not None and self._journal.has_report(task_id))

    def wait(self, timeout: float) -> None:
        self._worker.work()
        if not self._store.has_ended_task:
            self._supervisors.poll(timeout)

    def wake(self) -> None:
        """End the current `wait`. May be called from a signal handler or another thread."""
        self._supervisors.wake()

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        self._claims.cancel(list(ids), unless_started=unless_started)
        end = self._supervisors.revoke_waiting if unless_started else self._supervisors.revoke
        for task_id in ids:
            end(task_id)

    def stop_commands(self) -> None:
        """Stop all running commands until `continue_commands`, with the clocks of their timeouts."""
        self._supervisors.pause()

    def continue_commands(self) -> None:
        self._supervisors.resume()

    def end_commands(self) -> None:
        """End all running commands, and the supervisors. Return when they are dead."""
        self._supervisors.close()

    def forget_commands(self) -> None:
        """Close the descriptors in a forked child. The commands go on."""
        self._supervisors.forget()
