"""Reach the owner of a live run from a command."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from getpass import getuser
from typing import Any

from celeriac.cli.control_options import open_broker
from celeriac.cli.ledger_options import open_ledger
from celeriac.config.settings import Settings
from celeriac.ledger.views import find_run
from celeriac.runs.live_owner import LiveOwner, OpenConnection
from celeriac.runs.pausing import PauseResult, owner_of_live_run, pause_run


def live_owner(settings: Settings, *, run: str, label: str, asked_by: str) -> LiveOwner:
    """Return the owner of a run: on this machine, or on the broker of the settings, if they name one."""

    return LiveOwner(run=run, label=label, asked_by=asked_by, open_connection=opener(settings))


def opener(settings: Settings) -> OpenConnection | None:
    """Return how to connect to the broker of the settings; None if they name none."""

    @contextmanager
    def open_connection() -> Iterator[Any]:
        with open_broker(settings.connection) as broker:
            yield broker.connection

    return open_connection if settings.values["broker"].value is not None else None


def asked_by(command: str) -> str:
    """Return who asks, for the record of a change: the command, and the user, or the number of one without a name."""
    try:
        user = getuser()
    except (OSError, KeyError):
        user = f"user {os.geteuid()}"
    return f"celeriac {command} ({user})"


def pause_of_run(settings: Settings, name: str, queues: Sequence[str], *, resume: bool, asked_by: str) -> PauseResult:
    """Pause or resume a run, or queues of it. Raises `InvalidConfig` and `LedgerError`."""
    with open_ledger(settings, must_exist=True) as store:
        connection = opener(settings)
        return pause_run(store, name, queues, resume=resume, asked_by=asked_by, open_connection=connection)


def owner_of_run(settings: Settings, name: str, *, asked_by: str) -> LiveOwner:
    """Return the live owner of a run that was not submitted. Raises `InvalidConfig` and `LedgerError`."""
    with open_ledger(settings, must_exist=True, read_only=True) as store:
        return owner_of_live_run(store, name, asked_by=asked_by, open_connection=opener(settings))


def change_priority_of(settings: Settings, name: str, key: str, priority: int, *, asked_by: str) -> bool:
    """Change the priority of a task. Return whether it waits. Raises `InvalidConfig` and `LedgerError`."""
    with open_ledger(settings, must_exist=True) as ledger:
        view = find_run(ledger.database, name, counted=False)
        if view.owner is None:
            return ledger.reprioritise(view.id, name, key, priority, asked_by=asked_by)
    return live_owner(settings, run=name, label=view.owner, asked_by=asked_by).change_priority(key, priority)
