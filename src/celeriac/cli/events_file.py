"""`--events`: every move of every task, one JSON object a line."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import click
import msgspec

from celeriac.errors import InvalidConfig
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.run import Totals
from celeriac.task.event import Event


class EventsFile:
    """Written at every tick. A disk that fills up ends the record, and is said; it does not end the run."""

    def __init__(self, path: str, *, goes_on: bool = False) -> None:
        """`goes_on` keeps what is there already, of an earlier go at the run."""
        self._path = path
        self._encoder = msgspec.json.Encoder()
        self._lines: list[bytes] = []
        self._broken = False
        try:
            self._file = open(path, "ab" if goes_on else "wb", buffering=0)  # noqa: SIM115, PTH123 - see `__exit__`
        except OSError as error:
            raise InvalidConfig("--events", f"{path}: {error.strerror}", "name a file that can be written") from None

    def on_event(self, event: Event) -> None:
        if not self._broken:
            self._lines.append(self._encoder.encode(fields_of(event)))

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        data, self._lines = b"".join(line + b"\n" for line in self._lines), []
        try:
            while data and not self._broken:
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            self._broken = totals.record_lost = True
            click.echo(f"celeriac: --events: {self._path}: {error.strerror}; later events are not recorded", err=True)

    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None:
        """Nothing to record."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()


def fields_of(event: Event) -> dict[str, Any]:
    """An event as flat as it can be, without what it does not say."""
    fields: dict[str, Any] = msgspec.to_builtins(event, str_keys=True)
    fields |= fields.pop("execution", None) or {}
    return {name: value for name, value in fields.items() if value is not None}
