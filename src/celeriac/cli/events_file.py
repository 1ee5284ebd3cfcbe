"""`--events`: each event of each task as one JSON object per line."""

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
    """A watcher that writes events at every tick. After a write error it writes no more; the run goes on."""

    def __init__(self, path: str, *, appends: bool = False) -> None:
        """Open the file. With `appends`, keep the events of an earlier run. Raises `InvalidConfig`."""
        self._path = path
        self._encoder = msgspec.json.Encoder()
        self._lines: list[bytes] = []
        self._broken = False
        try:
            self._file = open(path, "ab" if appends else "wb", buffering=0)  # noqa: SIM115, PTH123 - see `__exit__`
        except OSError as error:
            raise InvalidConfig("--events", f"{path}: {error.strerror}", "name a file that can be written") from None

    def on_event(self, event: Event) -> None:
        if not self._broken:
            self._lines.append(self._encoder.encode(event_fields(event)))

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


def event_fields(event: Event) -> dict[str, Any]:
    """Return an event as one flat mapping, without fields that are None."""
    fields: dict[str, Any] = msgspec.to_builtins(event, str_keys=True)
    fields |= fields.pop("execution", None) or {}
    return {name: value for name, value in fields.items() if value is not None}
