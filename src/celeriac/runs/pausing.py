"""Pause and resume a run of a ledger: a submitted one through the ledger, a live `celeriac run` by asking it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from celeriac.errors import InvalidConfig, LedgerError
from celeriac.executor.requests import PauseReply
from celeriac.ledger.run_pauses import WHOLE
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.views import RunState, RunView, find_run
from celeriac.runs.live_owner import LiveOwner, OpenConnection


class PauseResult(NamedTuple):
    """The effect on one executor."""

    executor: str | None
    """None for a submitted run that no service owns."""

    run: str | None
    """None if the executor was not asked for a run."""

    reply: PauseReply

    def fields(self) -> dict[str, Any]:
        """Return the fields of `PausedExecutor`."""
        reply = self.reply
        return {
            "executor": self.executor,
            "run": self.run,
            "changed": reply.changed,
            "paused": reply.paused,
            "queues": list(reply.queues),
            "waiting": reply.waiting,
            "in_flight": reply.in_flight,
        }


def pause_run(
    store: RunStore,
    name: str,
    queues: Sequence[str],
    *,
    resume: bool,
    asked_by: str,
    open_connection: OpenConnection | None,
) -> PauseResult:
    """Pause a run or these queues of it, or resume them. Raises `InvalidConfig` and `LedgerError`."""
    view = find_run(store.database, name)
    if not view.is_submitted or view.state is RunState.ENDED:
        owner = live_owner_of(view, asked_by=asked_by, open_connection=open_connection)
        reply = owner.pause(queues, resume=resume)
        with suppress(InvalidConfig, LedgerError):  # stored only to be shown: the owner has done what was asked
            store.change_pauses(view.id, queues, asked_by=asked_by, resume=resume, owner=view.owner)
        return PauseResult(owner.executor, name, reply)
    changed, pauses = store.change_pauses(view.id, queues, asked_by=asked_by, resume=resume)
    paused_queues = tuple(queue for queue in pauses if queue != WHOLE)
    counts = view.counts
    reply = PauseReply(
        changed=changed,
        paused=WHOLE in pauses,
        queues=paused_queues,
        waiting=counts.waiting,
        in_flight=counts.in_flight,
    )
    return PauseResult(view.owner, name, reply)


def owner_of_live_run(
    store: RunStore, name: str, *, asked_by: str, open_connection: OpenConnection | None
) -> LiveOwner:
    """Return the live owner of a run that was not submitted. Raises `InvalidConfig` and `LedgerError`."""
    view = find_run(store.database, name, counted=False)
    return live_owner_of(view, asked_by=asked_by, open_connection=open_connection)


def live_owner_of(view: RunView, *, asked_by: str, open_connection: OpenConnection | None) -> LiveOwner:
    run = f"run {view.name!r}"
    if view.state is RunState.ENDED:
        raise InvalidConfig(run, "has ended", "celeriac runs lists those that run")
    if view.is_submitted:
        raise InvalidConfig(run, "was submitted: its limits are those of celeriac serve", "change the service")
    if view.owner is None:
        raise InvalidConfig(run, "is not running", "celeriac run FILE --resume goes on with it")
    return LiveOwner(run=view.name, label=view.owner, asked_by=asked_by, open_connection=open_connection)
