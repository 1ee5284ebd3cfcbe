"""Reach the owner of a live run from a command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from typing import Any

from celeriac.cli.control_options import open_broker
from celeriac.config.settings import Settings
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
