"""The limits of a run, as the options of `run`, `retry` and `serve` give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from celeriac.config.executor_config import Config
from celeriac.config.rate import parse_rate
from celeriac.config.settings import Connection, Settings, can_hold_claims
from celeriac.errors import InvalidConfig
from celeriac.runs.options import LIMITS

T = TypeVar("T")


def with_limits(config: Config, options: Mapping[str, Sequence[str]]) -> Config:
    """Return a configuration with the limits of the options in the place of those before. Raises `InvalidConfig`."""
    changes: dict[str, Any] = {}
    for name, values in options.items():
        if values:
            changes[name] = rates_of(name, values) if name.endswith("rates") else numbers_of(name, values)
    return replace(config, **changes) if changes else config


def numbers_of(name: str, values: Sequence[str]) -> dict[str, int]:
    remedy = "write QUEUE=N, for example gpu=1" if name == "queue_limits" else "write KEY=N, for example db=3"
    return pairs_of(LIMITS[name], values, number_of, remedy)


def number_of(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) >= 1 else None


def rates_of(name: str, values: Sequence[str]) -> dict[str, str]:
    what = "QUEUE" if name == "queue_rates" else "KEY"
    return pairs_of(LIMITS[name], values, rate_of, f"write {what}=N/s, N/m or N/h, for example db=10/m")


def rate_of(text: str) -> str | None:
    try:
        parse_rate("rate", text)
    except InvalidConfig:
        return None
    return text


def pairs_of(option: str, values: Sequence[str], parse: Callable[[str], T | None], remedy: str) -> dict[str, T]:
    limits = {}
    for value in values:
        name, _, text = value.rpartition("=")
        if not name or (limit := parse(text)) is None:
            raise InvalidConfig(option, f"{value!r} is not a limit", remedy)
        limits[name] = limit
    return limits


def check_machine_limits(settings: Settings) -> None:
    """Raise `InvalidConfig` for a limit of this machine that was given for commands that run elsewhere."""
    for name in ("max_load", "min_free_memory"):
        if (origin := settings.values[name].origin).startswith("--"):
            problem = "is a limit of the machine that runs the commands, which are workers here"
            raise InvalidConfig(origin, problem, f"give it to celeriac worker: celeriac worker {origin} …")


def check_backend_keeps_limits(connection: Connection) -> None:
    """Raise `InvalidConfig` for workers whose result backend cannot hold the limits of several executors."""
    if not can_hold_claims(connection.backend):
        problem = "it cannot keep limits of keys and rates"
        raise InvalidConfig("backend", problem, "give Redis, Valkey or a database, or leave these limits out")
