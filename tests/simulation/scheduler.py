"""A process with an executor: the jobs come in, the events go out, and it may be killed at any step."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from celeriac.errors import LedgerLost, LedgerUnavailable
from celeriac.executor.executor import CeleryExecutor
from celeriac.task.task import TaskKey
from tests.simulation.clients import OwnedLedger
from tests.simulation.parts import ClusterParts
from tests.simulation.primitives import sleep
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.history import History

MAX_WAIT = 5.0  # seconds until the executor has a heartbeat, whatever it waits for


class SimulatedScheduler:
    """One process with an executor, until it is killed."""

    def __init__(self, history: History, name: str) -> None:
        self.history, self.name = history, name
        world, random = history.world, history.world.random
        rate, error = history.clock_rate(), history.clock_error
        self.process = Process(world, name, rate=rate, wall_offset=random.uniform(-error, error))
        self.executor: CeleryExecutor | None = None
        self.ledger: OwnedLedger
        self.ends_by: str | None = None
        """How it is asked to end, if it is."""

        self.process.spawn(self._main)

    def ask_to_end(self, how: str) -> None:
        self.ends_by = how

    def _main(self) -> None:
        try:
            executor = self._make_executor()
        except (LedgerUnavailable, LedgerLost):
            sleep(1.0)
            self.process.kill()
            return
        self.executor = executor
        with suppress(LedgerLost):
            self._drive(executor)
            self._end(executor)
        self.process.kill()

    def _make_executor(self) -> CeleryExecutor:
        self.ledger = OwnedLedger(self.history)
        executor = ClusterParts(self.history, self.process).executor(self.ledger)
        executor.recover(ended=self.history.ends())
        return executor

    def _drive(self, executor: CeleryExecutor) -> None:
        """Have heartbeats until it is asked to end."""
        history = self.history
        queued: set[TaskKey] = set()
        while self.ends_by is None:
            for tasks in history.due_tasks():
                new = [task for task in tasks if task.key not in queued and not executor.has_task(task.key)]
                if len(new) == len(tasks):
                    executor.queue_tasks(tasks)
                    queued.update(task.key for task in tasks)
            self._beat(executor)
            executor.wait(min(MAX_WAIT, history.seconds_until_due()))

    def _end(self, executor: CeleryExecutor) -> None:
        """Start nothing more, wait for what is in flight, and revoke the rest."""
        self._beat(executor)
        self.ledger.drained_after = executor._ledger_writer._number
        self.history.was_drained = True
        match self.ends_by:
            case "drain":
                executor.drain()
            case "cancel_unstarted":
                executor.drain()
                executor.cancel_unstarted()
            case _:
                executor.terminate()
        while executor.tasks_in_flight:
            self._beat(executor)
            executor.wait(min(MAX_WAIT, self.history.seconds_until_due()))
        while not executor.end(0.0) or executor._lifecycle.event_buffer:
            self._beat(executor)
            sleep(1.0)
        self._beat(executor)

    def _beat(self, executor: CeleryExecutor) -> None:
        if keys := [key for key in self.history.due_revokes() if executor.has_task(key)]:
            executor.revoke_tasks(keys)
            if executor.flush():
                self.history.revoke_requested(keys)
        for feature in self.history.features:
            feature.before_heartbeat(executor)
        executor.heartbeat()
        self.history.invariants.executor_rests(executor)
        events = executor.read_events()
        for event in events:
            self.history.invariants.told(event)
        if events:
            executor.acknowledge(events[-1].number)
