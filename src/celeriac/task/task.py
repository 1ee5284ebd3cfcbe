"""The unit of work: a command, the queue it waits in, and how soon it should run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TypeAlias
from uuid import uuid4

from celeriac.errors import InvalidTask

TaskKey: TypeAlias = Hashable
Command: TypeAlias = str | tuple[str, ...]

DEFAULT_QUEUE = "default"
DEFAULT_GRACE = 5.0  # seconds between TERM and KILL
DEFAULT_RETRY_DELAY = 1.0  # seconds before the second attempt
DEFAULT_MAX_LOST = 3
MAX_WAIT = 10 * 365 * 86_400.0  # seconds; what is longer is a mistake, not a wish
MAX_PRIORITY = 2**31 - 1
MAX_URGENCY = 9
"""The levels of urgency inside a broker are 0 to 9: what RabbitMQ and Celery's Redis transport can both tell apart."""

NO_ENV: Mapping[str, str] = MappingProxyType({})
NO_NEEDS: tuple[TaskKey, ...] = ()


class OnWorkerLost(StrEnum):
    """What becomes of a task whose worker had started it and is gone."""

    RETRY = "retry"
    """It is run elsewhere, as its next attempt. None of its own retries is used up."""

    FAIL = "fail"


class OnNeedFailed(StrEnum):
    """What becomes of a task when one that it needs ends in anything but success."""

    SKIP = "skip"
    """It is skipped, and so in turn are those that need it."""

    RUN = "run"
    """It runs all the same, once all that it needs has ended."""


class Secret(str):
    """An environment value that no log, error or listing may show. `reveal` gives it back."""

    __slots__ = ()

    def reveal(self) -> str:
        return str.__str__(self)

    def __repr__(self) -> str:
        return "'******'"

    def __str__(self) -> str:
        return "******"

    def __format__(self, spec: str) -> str:
        return format("******", spec)


def new_task_id() -> str:
    return str(uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked for. Wrong values are refused here, with `InvalidTask`, so that none travels."""

    key: TaskKey
    """Names the task for the caller; unique among the tasks waiting and out."""

    command: Command
    """A tuple of arguments is executed as it is; a string is handed to /bin/sh."""

    queue: str = DEFAULT_QUEUE
    """The broker queue to send it to."""

    priority: int = 0
    """Higher goes first; equals go in the order they were queued."""

    slots: int = 1
    """How many of the executor's slots it takes while it is out."""

    env: Mapping[str, str] = field(default_factory=lambda: NO_ENV)
    """Added to the worker's own environment. Values of type `Secret` are never shown."""

    cwd: str | None = None
    timeout: float | None = None
    """Seconds from start until TERM is sent to its process group."""

    grace: float = DEFAULT_GRACE
    """Seconds between TERM and KILL."""

    retries: int = 0
    """How often it may be tried again after an attempt that failed."""

    retry_delay: float = DEFAULT_RETRY_DELAY
    """Seconds before the second attempt; doubled for each one after, with jitter."""

    on_worker_lost: OnWorkerLost = OnWorkerLost.RETRY
    """Its words, "retry" and "fail", are taken too."""

    max_lost: int = DEFAULT_MAX_LOST
    """How many workers may be lost with it until it ends as failed: it may be what kills them."""

    needs: tuple[TaskKey, ...] = NO_NEEDS
    """Keys of the tasks that must end before this one may start. A list is taken too."""

    on_need_failed: OnNeedFailed = OnNeedFailed.SKIP
    """Its words, "skip" and "run", are taken too."""

    id: str = field(default_factory=new_task_id)
    """Names the task on the broker. Chosen before sending, so a restarted executor can find it again."""

    attempt: int = 1
    lost: int = 0
    """How many of the earlier attempts were lost with their workers."""

    def __post_init__(self) -> None:
        if isinstance(self.command, list):  # JSON knows no tuples
            object.__setattr__(self, "command", tuple(self.command))
        check_command(self.command)
        check_whole("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        check_whole("slots", self.slots, 1, MAX_PRIORITY)
        check_whole("retries", self.retries, 0, MAX_PRIORITY)
        check_whole("attempt", self.attempt, 1, MAX_PRIORITY)
        check_whole("lost", self.lost, 0, MAX_PRIORITY)
        check_whole("max_lost", self.max_lost, 1, MAX_PRIORITY)
        check_name("queue", self.queue)
        if type(self.on_worker_lost) is not OnWorkerLost:
            object.__setattr__(self, "on_worker_lost", parse_on_worker_lost(self.on_worker_lost))
        if self.grace is not DEFAULT_GRACE:  # most tasks leave it: a million of them are checked sooner
            check_seconds("grace", self.grace)
        if self.retry_delay is not DEFAULT_RETRY_DELAY:
            check_seconds("retry_delay", self.retry_delay)
        if self.timeout is not None:
            check_seconds("timeout", self.timeout, above_zero=True)
        if self.cwd is not None:
            check_name("cwd", self.cwd)
        if self.env is not NO_ENV:
            check_env(self.env)
        if self.needs is not NO_NEEDS:
            if isinstance(self.needs, list):
                object.__setattr__(self, "needs", tuple(self.needs))
            check_needs(self.key, self.needs)
        if type(self.on_need_failed) is not OnNeedFailed:
            object.__setattr__(self, "on_need_failed", parse_on_need_failed(self.on_need_failed))

    @property
    def message_id(self) -> str:
        """The Celery id of this attempt: known before it is sent, and told apart from other attempts."""
        return self.id if self.attempt == 1 else f"{self.id}.{self.attempt}"

    @property
    def urgency(self) -> int:
        """How urgent it is inside a broker. Priorities below 0 and above 9 count as 0 and 9."""
        return min(max(self.priority, 0), MAX_URGENCY)

    @property
    def has_retries_left(self) -> bool:
        return self.attempt - self.lost <= self.retries

    def next_attempt(self, *, was_lost: bool = False) -> Task:
        return replace(self, attempt=self.attempt + 1, lost=self.lost + was_lost)


def parse_on_worker_lost(given: object) -> OnWorkerLost:
    for policy in OnWorkerLost:
        if given == policy.value:
            return policy
    raise InvalidTask("on_worker_lost", f"{describe(given)} is neither", 'write "retry" or "fail"')


def parse_on_need_failed(given: object) -> OnNeedFailed:
    for policy in OnNeedFailed:
        if given == policy.value:
            return policy
    raise InvalidTask("on_need_failed", f"{describe(given)} is neither", 'write "skip" or "run"')


def check_command(command: object) -> None:
    if isinstance(command, str):
        if not command.strip():
            raise InvalidTask("command", "it is empty", 'write a shell command, for example "gzip -k data.csv"')
        words: tuple[object, ...] = (command,)
    elif isinstance(command, tuple):
        if not command or command[0] == "":
            raise InvalidTask("command", "it is empty", 'name a program, for example ["gzip", "-k", "data.csv"]')
        words = command
    else:
        raise InvalidTask(
            "command", f"{describe(command)} is no command", 'write a string, or a list of strings such as ["ls", "-l"]'
        )
    for word in words:
        if not isinstance(word, str):
            raise InvalidTask("command", f"the argument {describe(word)} is no string", 'put quotes around it: "5"')
        if "\0" in word:
            raise InvalidTask("command", "it holds a NUL character", "leave it out: no program can be given one")


def check_whole(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise InvalidTask(
            name,
            f"{describe(value)} is not a whole number from {least} to {most}",
            f"write for example {max(least, 1)}",
        )


def check_seconds(name: str, value: object, *, above_zero: bool = False) -> None:
    if type(value) not in (int, float) or not 0 <= value <= MAX_WAIT or (above_zero and value == 0):  # type: ignore[operator]
        kind = "a number of seconds above 0" if above_zero else "a number of seconds, 0 or more"
        raise InvalidTask(name, f"{describe(value)} is not {kind}", "write for example 30 or 0.5")


def check_name(name: str, value: object) -> None:
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidTask(name, f"{describe(value)} is no name", 'write a string such as "default"')


def check_env(env: object) -> None:
    if not isinstance(env, Mapping):
        raise InvalidTask("env", f"{describe(env)} is no table", 'write names and values: {"LANG": "C"}')
    for name, value in env.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise InvalidTask("env", f"{describe(name)} is no variable name", 'write for example {"LANG": "C"}')
        if not isinstance(value, str) or "\0" in value:
            raise InvalidTask("env", f"the value of {name} is no string", f'put quotes around it: {{"{name}": "1"}}')


def check_needs(key: TaskKey, needs: object) -> None:
    if not isinstance(needs, tuple):
        raise InvalidTask("needs", f"{describe(needs)} is no list of keys", 'write for example ["fetch", "unpack"]')
    seen = set()
    for need in needs:
        if need == key:
            raise InvalidTask("needs", "the task needs itself", "leave its own key out")
        try:
            if need in seen:
                raise InvalidTask("needs", f"{describe(need)} is in it twice", "keep one of them")
            seen.add(need)
        except TypeError:
            raise InvalidTask("needs", f"{describe(need)} is no key", "name the key of a task") from None


def describe(value: object) -> str:
    """A value as an error message may show it: short, and never a secret."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
