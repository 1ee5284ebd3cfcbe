"""Change an executor while it runs: pause and resume it, or single queues, and change its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from celeriac.config.executor_config import SHARED_LIMITS, Config
from celeriac.errors import InvalidConfig, InvalidTask
from celeriac.executor.dispatcher import Dispatcher
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.pauses import Pause, Pauses
from celeriac.executor.resources import Resources
from celeriac.executor.slots import Slots
from celeriac.task.amounts import Amounts

if TYPE_CHECKING:
    from celeriac.executor.start_gate import StartGate


class Adjustments:
    """Changes that last until they are undone, or the executor ends."""

    def __init__(
        self, *, lifecycle: TaskLifecycle, dispatcher: Dispatcher, start_gate: StartGate | None = None
    ) -> None:
        self._lifecycle, self._dispatcher, self._start_gate = lifecycle, dispatcher, start_gate

    @property
    def pauses(self) -> Pauses:
        """The present pauses."""
        return self._lifecycle.pauses

    @property
    def shared_limits(self) -> dict[str, dict[str, int | str]]:
        """The limits of keys and rates, by the name of the field of `Config`."""
        return self._lifecycle.config.shared_limits

    def why_held(self) -> str:
        """Return what holds tasks back, a pause or a limit of the machine, for a person; "" if nothing does."""
        if words := self.pauses.words():
            return words
        hold = None if self._start_gate is None else self._start_gate.waits
        return "" if hold is None else f"waits: {hold.words}"

    def pause(self, queue: str | None = None, *, asked_by: str = "its own process") -> bool:
        """Send nothing more, or nothing more of one queue, until `resume`. Return whether that was not paused yet.

        Tasks in flight go on, and their failed attempts wait."""
        pauses, pause = self.pauses, Pause(asked_by, self._lifecycle.wall_clock())
        if queue is not None:
            return pauses.queues.setdefault(queue, pause) is pause
        pauses.whole = pauses.whole or pause
        return pauses.whole is pause

    def resume(self, queue: str | None = None) -> bool:
        """End a pause. Return whether there was one. Queues that were paused one by one stay so."""
        pauses = self.pauses
        before = pauses.whole if queue is None else pauses.queues.pop(queue, None)
        if queue is None:
            pauses.whole = None
        self._lifecycle.may_start_more = True
        return before is not None

    def hold_back(self, why: str | None) -> None:
        """Send nothing more, for this reason, until this is called with None. It is independent of `pause`."""
        if why is None:
            self.pauses.backlog = None
        elif self.pauses.backlog is None:
            self.pauses.backlog = Pause(why, self._lifecycle.wall_clock())

    def pause_runs(self, pauses: Mapping[str, Mapping[str, Pause]]) -> bool:
        """Pause these runs of an executor of several runs, or single queues of them, and no others. Return whether that
        changed anything."""
        if self.pauses.runs == pauses:
            return False
        self.pauses.runs = {run: dict(of_run) for run, of_run in pauses.items()}
        holds = (lambda task: self.pauses.of_run(task) is not None) if pauses else None
        self._lifecycle.queue.hold(holds)
        self._lifecycle.may_start_more = True
        return True

    def change_limits(
        self,
        *,
        parallelism: int | None = None,
        queue_limits: Mapping[str, int | None] | None = None,
        shared_limits: Mapping[str, Mapping[str, int | str | None]] | None = None,
    ) -> None:
        """Change the number of slots, and the limits of these queues; None removes one. Tasks in flight go on.

        `shared_limits` are limits of keys and rates by the name of the field of `Config`; there, too, None removes one.
        A task whose key has no limit any more starts as if it had no key.

        Raise `InvalidConfig` for a limit that is no number from 1, or with which a task could never start, and for a
        first limit that no store can keep; then nothing was changed."""
        slots = self._lifecycle.slots
        parallelism = slots.parallelism if parallelism is None else parallelism
        changed = {**slots.limits, **(queue_limits or {})}
        limits = {queue: limit for queue, limit in changed.items() if limit is not None}
        self._check(Config(parallelism=parallelism, queue_limits=limits))
        if shared_limits:
            self._change_shared(shared_limits)
        slots.change(parallelism, limits)
        self._lifecycle.may_start_more = True

    def _change_shared(self, changes: Mapping[str, Mapping[str, int | str | None]]) -> None:
        lifecycle = self._lifecycle
        if unknown := [name for name in changes if name not in SHARED_LIMITS]:
            raise InvalidConfig("limits", f"{unknown[0]!r} is none", f"the names are {', '.join(SHARED_LIMITS)}")
        config = replace(lifecycle.config, **{name: self._changed(name, limits) for name, limits in changes.items()})
        if lifecycle.limits is None and config.has_shared_limits:
            lifecycle.limits = lifecycle.open_limits(Config())
        lifecycle.config = config
        lifecycle.limited_keys |= config.limited_keys
        if lifecycle.limits is None:
            return
        lifecycle.limits.change(config, [tracked.task for tracked in lifecycle.tracker])
        for limit in [*lifecycle.queue.aside]:
            lifecycle.queue.take_back(limit, len(lifecycle.queue))

    def _changed(self, name: str, changes: Mapping[str, int | str | None]) -> dict[str, int | str]:
        """Return the limits of a field of `Config` after changes."""
        limits = {**getattr(self._lifecycle.config, name), **changes}
        return {subject: limit for subject, limit in limits.items() if limit is not None}

    def _check(self, config: Config) -> None:
        slots = Slots(config.parallelism, config.queue_limits)
        try:
            for task in self._lifecycle.tasks():
                slots.check_number(task.slots, task.queue)
            for queue, most in self._lifecycle.accepted.most_slots().items():
                slots.check_number(most, queue)
        except InvalidTask as error:
            raise InvalidConfig("limits", f"a task {error.problem}", "give a higher limit, or cancel it") from None

    @property
    def resources(self) -> Resources:
        """The CPUs, memory and GPUs that the tasks in flight share."""
        return self._lifecycle.slots.resources

    def limit_resources(self, find: Callable[[], Amounts]) -> None:
        """Let tasks need CPUs, memory and GPUs, which are together at most what `find` returns.

        Without this, such a task is refused. `find` is called once, when a task first needs any."""
        self.resources.limit(find)

    def stop_sending(self) -> None:
        """Send nothing more, and leave the waiting tasks to the next executor of the ledger. It cannot be undone.

        Tasks in flight are still tracked. The next executor also retries their failed attempts."""
        self._dispatcher.has_stopped = True
