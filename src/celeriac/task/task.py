"""The task: a command with its queue, priority, limits and policies."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from enum import StrEnum
from os import urandom
from types import MappingProxyType
from typing import TypeAlias

from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

from celeriac.errors import InvalidTask

TaskKey: TypeAlias = Hashable
Command: TypeAlias = str | tuple[str, ...]

DEFAULT_QUEUE = "default"
DEFAULT_GRACE = 5.0  # seconds between TERM and KILL
DEFAULT_RETRY_DELAY = 1.0  # seconds before the second attempt
DEFAULT_MAX_LOST = 3
NO_PRIORITY = NONE = 0
ONE = 1
MAX_WAIT = 10 * 365 * 86_400.0  # seconds; a longer time is refused as a mistake
MAX_PRIORITY = 2**31 - 1
MAX_STDIN = 1024 * 1024  # bytes of text; it travels in the message, and is stored in the ledger
MAX_ID_LENGTH = 155
"""Characters of a message's id: a database as Celery's result backend stores no more."""

MAX_FIRST_ID_LENGTH = MAX_ID_LENGTH - len(f".{MAX_PRIORITY}")
"""Characters of a task's id. The ids of later attempts end with their number."""

MAX_URGENCY = 9
"""The levels of urgency inside a broker are 0 to 9: RabbitMQ and Celery's Redis transport both support them."""

NO_ENV: Mapping[str, str] = MappingProxyType({})
NO_NEEDS: tuple[TaskKey, ...] = ()
NO_TAGS: tuple[str, ...] = ()
NO_ARTIFACTS: tuple[str, ...] = ()


class OnWorkerLost(StrEnum):
    """The policy for a task whose worker died after it had started the task."""

    RETRY = "retry"
    """Run it on another worker, as its next attempt. This does not use up one of its retries."""

    FAIL = "fail"
    """End it as FAILED."""


class OnNeedFailed(StrEnum):
    """The policy for a task when a task that it needs does not succeed."""

    SKIP = "skip"
    """Skip it, and in turn the tasks that need it."""

    RUN = "run"
    """Run it when all tasks that it needs have ended."""


class Secret(str):
    """An environment value that logs, errors and listings show as asterisks."""

    __slots__ = ()

    def reveal(self) -> str:
        """Return the value."""
        return str.__str__(self)

    def __repr__(self) -> str:
        return "'******'"

    def __str__(self) -> str:
        return "******"

    def __format__(self, spec: str) -> str:
        return format("******", spec)


def new_task_id() -> str:
    """Return a new Celery id: a random UUID. `uuid4` would need four times as long, for each of a million tasks."""
    number = urandom(16).hex()
    variant = "89ab"[int(number[16], 16) & 3]
    return f"{number[:8]}-{number[8:12]}-4{number[13:16]}-{variant}{number[17:20]}-{number[20:]}"


class Task(Struct, frozen=True, kw_only=True, gc=False):
    """A command to run, and how to run it. A wrong value raises `InvalidTask` here, before the task is queued."""

    key: TaskKey
    """The caller's name for the task, unique among the tasks that are waiting or in flight.

    It must not refer to a task or an event: Python's garbage collector looks at neither, so such a circle stays in
    memory.
    """

    command: Command
    """A tuple of arguments is executed as it is; a string is run by /bin/sh."""

    queue: str = DEFAULT_QUEUE
    """The broker queue."""

    priority: int = NO_PRIORITY
    """Higher priorities go first; equal ones go in the order of arrival."""

    slots: int = ONE
    """How many slots of the executor it takes while it is in flight."""

    cpus: float | None = None
    """How many CPUs it needs, with up to three digits after the point. Without these three fields it needs none."""

    memory: int | None = None
    """How many bytes of memory it needs. Text such as "2G" is accepted, too."""

    gpus: int = NONE
    """How many GPUs it needs."""

    env: Mapping[str, str] = field(default_factory=lambda: NO_ENV)
    """Variables added to the worker's environment. Values of type `Secret` are never shown."""

    cwd: str | None = None
    timeout: float | None = None
    """Seconds from its start until TERM is sent to its process group."""

    grace: float = DEFAULT_GRACE
    """Seconds between TERM and KILL."""

    retries: int = NONE
    """How many failed attempts may be followed by another attempt."""

    retry_delay: float = DEFAULT_RETRY_DELAY
    """Seconds before the second attempt; doubled for each later one, with jitter."""

    on_worker_lost: OnWorkerLost = OnWorkerLost.RETRY
    """The strings "retry" and "fail" are accepted, too."""

    max_lost: int = DEFAULT_MAX_LOST
    """The number of lost workers after which the task ends as FAILED: it may be crashing them."""

    needs: tuple[TaskKey, ...] = NO_NEEDS
    """Keys of the tasks that must end before this one may start. A list is accepted, too."""

    on_need_failed: OnNeedFailed = OnNeedFailed.SKIP
    """The strings "skip" and "run" are accepted, too."""

    tags: tuple[str, ...] = NO_TAGS
    """Words by which a reader finds it. A list, and a text that separates them by commas, are accepted, too."""

    concurrency_key: str | None = None
    """What it uses together with other tasks. No more tasks of a key run at once than its limit says."""

    not_before: float | None = None
    """When it may start, in seconds since the epoch. A `datetime` and ISO 8601 are accepted, too."""

    deadline: float | None = None
    """When it must have started, in the same forms. Later it ends as FAILED without running. It may run for longer:
    `timeout` limits that."""

    stdin: str | None = None
    """The text that it reads from its standard input. A `Secret` is never shown. Without one its input is empty."""

    stdin_file: str | None = None
    """A file to read instead, where it runs; relative to `cwd`."""

    scratch: bool = False
    """Whether each attempt gets a folder for its temporary files, $CELERIAC_TMPDIR, which is removed at its end."""

    artifacts: tuple[str, ...] = NO_ARTIFACTS
    """Patterns of files that are copied beside its output when it has ended: relative to the scratch folder, or else to
    `cwd`. A list, and a text with one pattern, are accepted, too."""

    id: str = field(default_factory=new_task_id)
    """The Celery id of the first attempt. It is chosen before sending, so that a restarted executor finds the task."""

    attempt: int = ONE
    lost: int = NONE
    """The number of earlier attempts whose workers died."""

    def __post_init__(self) -> None:
        if isinstance(self.command, list):  # JSON has no tuples
            force_setattr(self, "command", tuple(self.command))
        check_command(self.command)
        check_id(self.id)
        if type(self.on_worker_lost) is not OnWorkerLost:
            force_setattr(self, "on_worker_lost", parse_on_worker_lost(self.on_worker_lost))
        # Most tasks keep the defaults below. Not checking these again saves time for a million tasks.
        if self.priority is not NO_PRIORITY:
            check_whole("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if self.slots is not ONE:
            check_whole("slots", self.slots, 1, MAX_PRIORITY)
        if self.retries is not NONE:
            check_whole("retries", self.retries, 0, MAX_PRIORITY)
        if self.attempt is not ONE:
            check_whole("attempt", self.attempt, 1, MAX_PRIORITY)
        if self.lost is not NONE:
            check_whole("lost", self.lost, 0, MAX_PRIORITY)
        if self.max_lost is not DEFAULT_MAX_LOST:
            check_whole("max_lost", self.max_lost, 1, MAX_PRIORITY)
        if self.queue is not DEFAULT_QUEUE:
            check_name("queue", self.queue)
        if self.grace is not DEFAULT_GRACE:
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
                force_setattr(self, "needs", tuple(self.needs))
            check_needs(self.key, self.needs)
        if type(self.on_need_failed) is not OnNeedFailed:
            force_setattr(self, "on_need_failed", parse_on_need_failed(self.on_need_failed))
        if self.tags is not NO_TAGS:
            from celeriac.task.tags import parse_tags  # late: few tasks have tags

            force_setattr(self, "tags", parse_tags(self.tags))
        if self.concurrency_key is not None:
            from celeriac.task.concurrency_key import check_concurrency_key  # late: few tasks have one

            check_concurrency_key(self.concurrency_key)
        if self.stdin is not None or self.stdin_file is not None:
            from celeriac.task.standard_input import check_input  # late: few tasks have an input

            check_input(self.stdin, self.stdin_file)
        if self.scratch is not False and self.scratch is not True:
            raise InvalidTask("scratch", f"{describe(self.scratch)} is neither true nor false", "write true or false")
        if self.artifacts is not NO_ARTIFACTS:
            from celeriac.task.artifacts import parse_artifacts  # late: few tasks have artifacts

            force_setattr(self, "artifacts", parse_artifacts(self.artifacts))
        if self.not_before is not None or self.deadline is not None:
            from celeriac.task.moment import set_moments  # late: most tasks have no times

            set_moments(self)
        if self.cpus is not None or self.memory is not None or self.gpus is not NONE:
            from celeriac.task.resources import set_resources  # late: few tasks name any

            set_resources(self)

    @property
    def message_id(self) -> str:
        """The Celery id of this attempt. Each attempt has its own id, known before it is sent."""
        return self.id if self.attempt == 1 else f"{self.id}.{self.attempt}"

    @property
    def urgency(self) -> int:
        """The level of urgency inside a broker. Priorities below 0 and above 9 count as 0 and 9."""
        priority = self.priority
        return priority if 0 <= priority <= MAX_URGENCY else MAX_URGENCY if priority > 0 else 0

    @property
    def has_retries_left(self) -> bool:
        """Whether another attempt may follow a failed one. Lost attempts do not count."""
        return self.attempt - self.lost <= self.retries

    def next_attempt(self, *, was_lost: bool = False) -> Task:
        """Return the task as its next attempt. `was_lost` says that the worker of the current attempt died."""
        return replace(self, attempt=self.attempt + 1, lost=self.lost + was_lost)


def parse_on_worker_lost(value: object) -> OnWorkerLost:
    """Return the policy of this name. Raise `InvalidTask`."""
    for policy in OnWorkerLost:
        if value == policy.value:
            return policy
    raise InvalidTask("on_worker_lost", f"{describe(value)} is not a policy", 'write "retry" or "fail"')


def parse_on_need_failed(value: object) -> OnNeedFailed:
    """Return the policy of this name. Raise `InvalidTask`."""
    for policy in OnNeedFailed:
        if value == policy.value:
            return policy
    raise InvalidTask("on_need_failed", f"{describe(value)} is not a policy", 'write "skip" or "run"')


def check_command(command: object) -> None:
    """Raise `InvalidTask` unless the command is a string or a tuple of strings, not empty and without NUL."""
    if isinstance(command, str):
        if "\0" not in command and not command.isspace() and command:
            return
        if not command.strip():
            raise InvalidTask("command", "it is empty", 'write a shell command, for example "gzip -k data.csv"')
        arguments: tuple[object, ...] = (command,)
    elif isinstance(command, tuple):
        if not command or command[0] == "":
            raise InvalidTask("command", "it is empty", 'name a program, for example ["gzip", "-k", "data.csv"]')
        arguments = command
    else:
        raise InvalidTask(
            "command",
            f"{describe(command)} is not a command",
            'write a string, or a list of strings such as ["ls", "-l"]',
        )
    for argument in arguments:
        if not isinstance(argument, str):
            raise InvalidTask("command", f"the argument {describe(argument)} is not a string", 'put it in quotes: "5"')
        if "\0" in argument:
            raise InvalidTask("command", "it contains a NUL character", "remove it: no program can receive one")


def check_whole(name: str, value: object, minimum: int, maximum: int) -> None:
    """Raise `InvalidTask` unless the value is a whole number within the bounds."""
    if type(value) is not int or not minimum <= value <= maximum:
        raise InvalidTask(
            name,
            f"{describe(value)} is not a whole number from {minimum} to {maximum}",
            f"write for example {max(minimum, 1)}",
        )


def check_seconds(name: str, value: object, *, above_zero: bool = False) -> None:
    """Raise `InvalidTask` unless the value is a number of seconds from 0 to `MAX_WAIT`."""
    if type(value) not in (int, float) or not 0 <= value <= MAX_WAIT or (above_zero and value == 0):  # type: ignore[operator]
        kind = "a number of seconds above 0" if above_zero else "a number of seconds, 0 or more"
        raise InvalidTask(name, f"{describe(value)} is not {kind}", "write for example 30 or 0.5")


def check_name(name: str, value: object) -> None:
    """Raise `InvalidTask` unless the value is a string, not empty and without NUL."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidTask(name, f"{describe(value)} is not a name", 'write a string such as "default"')


def check_id(task_id: object) -> None:
    """Raise `InvalidTask` unless the id is short, printable ASCII. Workers refuse messages with another id."""
    if not is_id(task_id):
        problem = f"{describe(task_id)} is not an id"
        raise InvalidTask("id", problem, f"give 1 to {MAX_FIRST_ID_LENGTH} printable ASCII characters, or none")


def is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_FIRST_ID_LENGTH and value.isascii() and value.isprintable()


def as_unicode(path: str) -> str:
    """Return a path as Unicode: each byte of it that is not UTF-8 is shown as its number."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_unicode(text: str) -> bool:
    """Return whether the text is Unicode. File names that are not UTF-8 become lone surrogates in Python."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_env(env: object) -> None:
    """Raise `InvalidTask` unless `env` maps variable names to strings. No error shows a value."""
    if not isinstance(env, Mapping):
        raise InvalidTask("env", f"{describe(env)} is not a table", 'write names and values: {"LANG": "C"}')
    for name, value in env.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise InvalidTask("env", f"{describe(name)} is not a variable name", 'write for example {"LANG": "C"}')
        if not isinstance(value, str) or "\0" in value:
            raise InvalidTask("env", f"the value of {name} is not a string", f'put it in quotes: {{"{name}": "1"}}')


def check_needs(key: TaskKey, needs: object) -> None:
    """Raise `InvalidTask` unless `needs` is a tuple of different keys of other tasks."""
    if not isinstance(needs, tuple):
        raise InvalidTask("needs", f"{describe(needs)} is not a list of keys", 'write for example ["fetch", "unpack"]')
    unique = set()
    for need in needs:
        if need == key:
            raise InvalidTask("needs", "the task needs itself", "remove its own key")
        try:
            if need in unique:
                raise InvalidTask("needs", f"{describe(need)} is listed twice", "keep one of them")
            unique.add(need)
        except TypeError:
            raise InvalidTask("needs", f"{describe(need)} is not a key", "write the key of a task") from None


def describe(value: object) -> str:
    """Return a value as text for an error message: short, and never a secret."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
