"""`--events`: each event of each task as one JSON object per line, in a file or on standard output."""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from celeriac.cli.messages import print_message
from celeriac.errors import InvalidConfig
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.run import Totals
from celeriac.task.event import Event
from celeriac.task.task import Command, TaskKey

STANDARD_OUTPUT = "-"
MAX_LINE = 2 * 1024 * 1024  # bytes of the first line of an existing file
BEGIN_OF_EVENT = re.compile(rb'\{"key":.*,"state":"', re.DOTALL)


def check_events_file(path: str | None, *, writes_output: bool) -> None:
    """Raise `InvalidConfig` if events must not be written there. The file may hold a job file or other data: only a
    file of events is overwritten. `writes_output` says whether the run itself writes to standard output."""
    if path == STANDARD_OUTPUT and writes_output:
        problem = "- is standard output, to which this run writes something else"
        raise InvalidConfig("--events", problem, "name a file")
    if path is None or path == STANDARD_OUTPUT:
        return
    with suppress(OSError):  # a file that cannot be read or does not exist: `EventsFile` reports that
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return
        with Path(path).open("rb") as file:
            first_line = file.readline(MAX_LINE)
        if first_line and not BEGIN_OF_EVENT.match(first_line):
            raise InvalidConfig("--events", f"{path} exists and holds no events", "remove it, or name another file")


class EventsFile:
    """A watcher that writes events at every tick. After a write error it writes no more; the run goes on."""

    records_all = True

    def __init__(self, path: str, *, appends: bool = False) -> None:
        """Open the file. With `appends`, keep the events of an earlier run. Raises `InvalidConfig`."""
        self._path = path
        self._encoder = msgspec.json.Encoder()
        self._lines: list[bytes] = []
        self._broken = False
        try:
            self._file = open_events(path, appends=appends)
        except OSError as error:
            raise InvalidConfig("--events", f"{path}: {error.strerror}", "name a file that can be written") from None

    def on_queued(self, jobs: Iterable[tuple[TaskKey, Command]]) -> None:
        """Nothing to record."""

    def on_event(self, event: Event, command: Command | None) -> None:
        if not self._broken:
            self._lines.append(self._encoder.encode(event_fields(event)))

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None:
        data, self._lines = b"".join(line + b"\n" for line in self._lines), []
        try:
            while data and not self._broken:
                data = data[self._file.write(data) or 0 :]
            self._file.flush()
        except OSError as error:
            self._broken = totals.record_lost = True
            print_message(f"--events: {self._path}: {error.strerror}; later events are not recorded")

    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None:
        """Nothing to record."""

    def on_revoke(self, waiting: int) -> None:
        """Nothing to record."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._path != STANDARD_OUTPUT:
            self._file.close()


def open_events(path: str, *, appends: bool) -> BinaryIO:
    """Open the file, or return standard output for "-". Raises `OSError`."""
    if path == STANDARD_OUTPUT:
        return sys.stdout.buffer
    return Path(path).open("ab" if appends else "wb", buffering=0)


def event_fields(event: Event) -> dict[str, Any]:
    """Return an event as one flat mapping, without fields that are None."""
    fields: dict[str, Any] = msgspec.to_builtins(event, str_keys=True)
    fields |= fields.pop("execution", None) or {}
    return {name: value for name, value in fields.items() if value is not None}
