"""The fields of a task that a condition compares, and their values in a row of the ledger."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from celeriac.ledger.codec import decode, stored_text, stored_time
from celeriac.ledger.where.parser import CHOICE_OPERATORS, NUMBER_OPERATORS, Kind
from celeriac.ledger.where.quantities import parse_duration, parse_number
from celeriac.ledger.where.tree import Value
from celeriac.task.result import Reason
from celeriac.task.size import parse_size
from celeriac.task.state import State
from celeriac.task.task import DEFAULT_QUEUE

T = TypeVar("T")


def parse_bytes(text: str) -> float | None:
    """Return the bytes of a size; None for another text. No database compares with a larger integer than it has."""
    size = parse_size(text)
    return None if size is None else float(size)


def choice(what: str, values: Iterable[str]) -> Kind:
    """Return the kind of a field that has one of these values."""
    known = tuple(values)
    return Kind(what, ", ".join(known), lambda text: text if text in known else None, CHOICE_OPERATORS)


TEXT = Kind("a text")
NUMBER = Kind("a whole number", "for example 3", parse_number, NUMBER_OPERATORS)
DURATION = Kind("a duration", "for example 60, 90s, 5m or 1h30m", parse_duration, NUMBER_OPERATORS)
SIZE = Kind("a size", "for example 500M or 2G", parse_bytes, NUMBER_OPERATORS)

FIELDS = {
    "key": TEXT,
    "command": TEXT,
    "queue": TEXT,
    "tag": TEXT,
    "state": choice("a state", (state.value for state in State)),
    "reason": choice("a reason", (reason.value for reason in Reason)),
    "detail": TEXT,
    "exit_code": NUMBER,
    "signal": TEXT,
    "attempt": NUMBER,
    "lost": NUMBER,
    "priority": NUMBER,
    "slots": NUMBER,
    "took": DURATION,
    "waited": DURATION,
    "memory": SIZE,
    "host": TEXT,
}
ALIASES = {"duration": "took", "exit": "exit_code", "peak_memory": "memory", "tags": "tag", "worker": "host"}
"""Other names of fields: those of JSON, and those that one guesses."""

COLUMNS = ("key", "state", "attempt", "lost", "priority", "reason")
"""The fields that are columns of the ledger."""


class StoredJob(msgspec.Struct):
    """The part of a stored task that conditions compare."""

    command: str | tuple[str, ...] | None = None
    queue: str | None = DEFAULT_QUEUE
    slots: int | None = 1
    tags: tuple[str, ...] = ()


class StoredRun(msgspec.Struct):
    """The part of a stored execution that conditions compare."""

    host: str | None = None
    started: float | None = None
    duration: float | None = None
    exit_code: int | None = None
    signal: str | None = None
    peak_memory: int | None = None


JOB, RUN = msgspec.json.Decoder(StoredJob), msgspec.json.Decoder(StoredRun)
NO_JOB, NO_RUN = StoredJob(queue=None, slots=None), StoredRun()


class RowValues:
    """The values of the task of a row. What no condition compares is not decoded."""

    def __init__(self, row: Any, now: float | None) -> None:
        """`now` is the time up to which a task runs or waits; None if no process has its run."""
        self._row, self._now = row, now

    def value_of(self, field: str) -> Value:
        """Return the value of a field; None if the task has none, or if it is malformed."""
        if field in COLUMNS:
            value: Value = getattr(self._row, field)
            return value
        return GETTERS[field](self)

    @cached_property
    def job(self) -> StoredJob:
        return decode_or(JOB, self._row.payload, NO_JOB)

    @cached_property
    def run(self) -> StoredRun:
        return NO_RUN if self._row.execution is None else decode_or(RUN, self._row.execution, NO_RUN)

    @property
    def detail(self) -> Value:
        return stored_text(self._row.detail)

    @property
    def command(self) -> Value:
        command = self.job.command
        return shlex.join(command) if isinstance(command, tuple) else command

    @property
    def began(self) -> float | None:
        """When the last attempt began. The worker tells it at the end, and before that, the executor knows it."""
        is_running = self.run.started is None and self._row.state == State.RUNNING.value
        return stored_time(self._row.moved) if is_running else self.run.started

    @property
    def took(self) -> float | None:
        return seconds_taken(self._row.state, self.began, self.run.duration, self._now)

    @property
    def waited(self) -> float | None:
        """The seconds from the arrival of the task to the start of its last attempt, or to now if it waits."""
        arrived, until = stored_time(self._row.arrived), self.began
        if until is None and self._row.state == State.WAITING.value:
            until = self._now
        return None if arrived is None or until is None else max(0.0, until - arrived)


GETTERS: dict[str, Callable[[RowValues], Value]] = {
    "command": lambda values: values.command,
    "detail": lambda values: values.detail,
    "took": lambda values: values.took,
    "waited": lambda values: values.waited,
    "queue": lambda values: values.job.queue,
    "slots": lambda values: values.job.slots,
    "tag": lambda values: values.job.tags,
    "exit_code": lambda values: values.run.exit_code,
    "signal": lambda values: values.run.signal,
    "memory": lambda values: values.run.peak_memory,
    "host": lambda values: values.run.host,
}


def seconds_taken(state: str, began: float | None, duration: float | None, now: float | None) -> float | None:
    """Return how long the last attempt of a task took, or has run until now."""
    if duration is not None or state != State.RUNNING.value or began is None or now is None:
        return duration
    return max(0.0, now - began)


def decode_or(decoder: msgspec.json.Decoder[T], text: Any, otherwise: T) -> T:
    """Return the value of stored JSON; `otherwise` if it is malformed."""
    try:
        return decode(decoder, text)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return otherwise
