"""The settings that a worker elsewhere needs: as values for its options, or as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celeriac.config.settings import CONNECTION_FIELDS, DEFAULT, Settings, WorkerSettings
from celeriac.task.task import Secret

FILES = ("tls_ca", "tls_cert", "tls_key", "output")
SECRETS = ("broker", "backend", "signing_key")


def worker_values(settings: Settings) -> dict[str, Any]:
    """Return the settings of a worker that were given, and those of its connection. Raises `InvalidConfig`.

    Paths are absolute. The name is left out: each worker needs its own.
    """
    connection = settings.connection
    values: dict[str, Any] = {name: getattr(connection, name) for name in SECRETS}
    for name in (*CONNECTION_FIELDS, *WorkerSettings.__struct_fields__):
        if name != "name" and settings.values[name].origin != DEFAULT:
            values[name] = settings.values[name].value
    given = {name: plain(value) for name, value in values.items() if value is not None}
    return {name: str(Path(value).absolute()) if name in FILES else value for name, value in given.items()}


def plain(value: Any) -> Any:
    """Return a value as JSON and TOML know it."""
    if isinstance(value, Secret):
        return value.reveal()
    return list(value) if isinstance(value, tuple) else value


def as_toml(values: Mapping[str, Any]) -> str:
    """Return texts, numbers, truth values and lists of them as TOML, whose notation is JSON's for all of these."""
    lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
    return "".join(lines).replace("\x7f", "\\u007f")
