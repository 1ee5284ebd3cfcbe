"""Reach the owner of a live run from a command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from typing import Any

from celeriac.cli.control_options import open_broker
from celeriac.cli.ledger_options import open_ledger
from celeriac.config.settings import Settings
from celeriac.errors import InvalidConfig
from celeriac.ledger.views import RunState, find_run
from celeriac.runs.live_owner import LiveOwner


def live_owner(settings: Settings, *, run: str, label: str, asked_by: str) -> LiveOwner:
    """Return the owner of a run: on this machine, or on the broker of the settings, if they name one."""

    @contextmanager
    def open_connection() -> Iterator[Any]:
        with open_broker(settings.connection) as broker:
            yield broker.connection

    has_broker = settings.values["broker"].value is not None
    return LiveOwner(run=run, label=label, asked_by=asked_by, open_connection=open_connection if has_broker else None)


def asked_by(command: str) -> str:
    """Return who asks, for the record of a change: the command, and the user, or the number of one without a name."""
    try:
        user = getuser()
    except (OSError, KeyError):
        user = f"user {os.geteuid()}"
    return f"celeriac {command} ({user})"


def owner_of_run(settings: Settings, name: str, *, asked_by: str) -> LiveOwner:
    """Return the live owner of a run. Raises `InvalidConfig` and `LedgerError`."""
    with open_ledger(settings, must_exist=True, read_only=True) as ledger:
        view = find_run(ledger.database, name, counted=False)
    if view.state is RunState.ENDED:
        raise InvalidConfig(f"run {name!r}", "has ended", "celeriac runs lists those that run")
    if view.is_submitted:
        raise InvalidConfig(
            f"run {name!r}", "was submitted: its limits are those of celeriac serve", "cancel it, or change the service"
        )
    if view.owner is None:
        raise InvalidConfig(f"run {name!r}", "is not running", "celeriac run FILE --resume goes on with it")
    return live_owner(settings, run=name, label=view.owner, asked_by=asked_by)


def change_priority_of(settings: Settings, name: str, key: str, priority: int, *, asked_by: str) -> bool:
    """Change the priority of a task. Return whether it waits. Raises `InvalidConfig` and `LedgerError`."""
    with open_ledger(settings, must_exist=True) as ledger:
        view = find_run(ledger.database, name, counted=False)
        if view.owner is None:
            return ledger.reprioritise(view.id, name, key, priority, asked_by=asked_by)
    return live_owner(settings, run=name, label=view.owner, asked_by=asked_by).change_priority(key, priority)
