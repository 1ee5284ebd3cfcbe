"""The messages between a worker and its supervisor.

Both sides use these classes; `to_json` and `from_json` define the JSON on the socket and in the journal. They are not
dataclasses: importing `dataclasses` takes ten milliseconds, and the supervisor must start fast.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable
from enum import StrEnum

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_):
        """Stand in for the decorator of `typing`, which only type checkers read."""
        return lambda message: message


FRAME = struct.Struct("!I")
"""The length, in bytes, of the JSON text that follows."""

NEW_CONNECTION = b"+"
"""On the control socket: the descriptor of a new connection comes with this byte."""

STDOUT, STDERR = b"\1", b"\2"
"""A frame with output begins with one of these bytes, and a report with "{". The worker answers each frame with output
by {"more": true}; before that, the supervisor sends nothing."""

HEARTBEAT = b"~"
"""On the control socket: the worker's lease was good at the time that follows."""

TIME = struct.Struct("=d")
"""A time of the machine's monotonic clock, in seconds."""

STOP_ALL, CONTINUE_ALL = b"z", b"f"
"""On the control socket: stop the processes of all commands, and let them go on."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Message:
    """A record: a type checker treats each subclass as a frozen dataclass with keyword arguments."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]

    NESTED: ClassVar[tuple[str, ...]] = ()
    """The names of the fields that may hold messages."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary. Messages in fields become dictionaries, too."""
        fields = dict(self.__dict__)
        for name in self.NESTED:
            if fields[name] is not None:
                fields[name] = fields[name].to_json()
        return fields


class StopReason(StrEnum):
    """Why a command was stopped, or was not started."""

    TIMEOUT = "timeout"
    MEMORY = "memory"
    """It used more memory than it may."""

    REVOKED = "revoked"

    SUPERSEDED = "superseded"
    """The task may run elsewhere by now."""

    WORKER_GONE = "worker gone"
    """The worker closed its connection."""

    WORKER_SILENT = "worker silent"
    """The worker sent no heartbeat for too long."""

    TOO_LATE = "too late"
    """The worker's lease expired before the command started."""


class OutputRequest(Message):
    """Where to keep what a command writes."""

    stdout: str | None
    """Path of the file for standard output; None keeps the last lines only."""

    stderr: str | None
    cap: int
    """Bytes kept of each stream."""

    keep_empty: bool
    """Whether an empty stream gets a file, too."""

    inherits: bool = False
    """Whether the command writes to the supervisor's own standard streams. Then nothing is kept."""

    sent: int | None = None
    """Bytes of each stream that are also sent to the worker, as they are written; None sends nothing."""


class CommandRequest(Message):
    """One command for the supervisor to run."""

    NESTED = ("output",)

    id: str
    """The id of the task's message."""

    argv: list[str]
    cwd: str | None
    env: dict[str, str]
    """Variables to add to the worker's own environment."""

    secrets: list[str]
    """The names of the variables whose values are masked in the last lines of the output."""

    timeout: float | None
    """Seconds from the start until TERM."""

    grace: float
    """Seconds from TERM until KILL."""

    start_by: float | None
    """The command must start before this time of the machine's monotonic clock; None for no limit."""

    output: OutputRequest
    inherits_input: bool = False
    """Whether a command without another input reads the supervisor's own; otherwise its input is empty."""

    stdin: str | None = None
    """The text of its standard input."""

    stdin_is_secret: bool = False
    """Whether that text is masked in the last lines of the output, too."""

    stdin_file: str | None = None
    """The file of its standard input, relative to `cwd`."""

    stdin_data: str | None = None
    """The bytes of its standard input in base64."""

    scratch: bool = False
    """Whether it gets a folder for its temporary files."""

    artifacts: list[str] | None = None
    """Patterns of the files to copy when it has ended: relative to its scratch folder, or else to `cwd`."""

    artifacts_to: str | None = None
    """The folder to copy them to. Without one, a command with artifacts does not start."""

    memory: int | None = None
    """Bytes that its processes may use together; None for no limit."""

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Build the request. Raises `ValueError` if a field is missing, or has a wrong type."""
        if not isinstance(data, dict) or not isinstance(data.get("output"), dict):
            raise ValueError("it is not a table with an output")  # noqa: TRY004 - its type is that of a message
        data = {"secrets": [], **data}  # a worker of an earlier version masks the secrets itself
        request = cls(**{**data, "output": OutputRequest(**data["output"])})
        for name, is_valid in REQUEST_FIELDS.items():
            if not is_valid(data.get(name)):
                raise ValueError(f"its field {name} is wrong")
        for name, is_valid in OUTPUT_FIELDS.items():
            if not is_valid(data["output"].get(name)):
                raise ValueError(f"its field output.{name} is wrong")
        return request


def is_text(value: object) -> bool:
    return isinstance(value, str)


def are_texts(*collections: Iterable[object]) -> bool:
    """Return whether all values are texts. JSON decodes to no subclass of `str`, so this needs no call for each."""
    return {kind for collection in collections for kind in map(type, collection)} <= {str}


def is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def is_number(value: object) -> bool:
    """Return whether a value is a number, and not infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def is_time(value: object) -> bool:
    """Return whether a value is a number of seconds that a timer can wait."""
    return is_number(value) and value >= 0  # type: ignore[operator]


REQUEST_FIELDS: dict[str, Callable[[Any], bool]] = {
    "id": is_text,
    "argv": lambda value: isinstance(value, list) and len(value) > 0 and are_texts(value),
    "cwd": is_text_or_none,
    "env": lambda value: isinstance(value, dict) and are_texts(value, value.values()),
    "secrets": lambda value: isinstance(value, list) and are_texts(value),
    "timeout": lambda value: value is None or is_time(value),
    "grace": is_time,
    "start_by": lambda value: value is None or is_number(value),
    "inherits_input": lambda value: value is None or isinstance(value, bool),
    "stdin": is_text_or_none,
    "stdin_is_secret": lambda value: value is None or isinstance(value, bool),
    "stdin_file": is_text_or_none,
    "stdin_data": is_text_or_none,
    "scratch": lambda value: value is None or isinstance(value, bool),
    "artifacts": lambda value: value is None or (isinstance(value, list) and are_texts(value)),
    "artifacts_to": is_text_or_none,
    "memory": lambda value: value is None or (is_number(value) and value > 0),
}
OUTPUT_FIELDS: dict[str, Callable[[Any], bool]] = {
    "stdout": is_text_or_none,
    "stderr": is_text_or_none,
    "cap": lambda value: isinstance(value, int),
    "keep_empty": lambda value: isinstance(value, bool),
    "inherits": lambda value: value is None or isinstance(value, bool),
    "sent": lambda value: value is None or isinstance(value, int),
}


class StartError(Message):
    """Why a command could not be started."""

    errno: int | None
    about: str
    """"cwd", "stdin", "scratch", "artifacts", "program", or "interpreter": `text` names the missing interpreter of the
    program."""

    text: str


class StreamReport(Message):
    """The output of a command on one of its two streams."""

    path: str | None
    """None if there is no file."""

    size: int
    """Bytes written by the command."""

    left_out: int
    """Bytes that the file lacks."""

    tail: str
    """The last lines."""


class CommandReport(Message):
    """How a command ended."""

    NESTED = ("error", "stdout", "stderr")

    pid: int | None
    """None if it did not start."""

    status: int | None
    """As `os.wait` returns it; None if the command did not start, or could not be ended."""

    started: float
    """Seconds since the epoch."""

    duration: float
    """Seconds."""

    peak_memory: int | None
    """Bytes."""

    stopped: StopReason | None
    """None if the command ended by itself."""

    leftovers_ended: bool
    """Whether the command left processes behind that had to be ended."""

    error: StartError | None
    output_error: str | None
    """Why output was not written to its file."""

    stdout: StreamReport
    stderr: StreamReport
    artifacts_error: str | None = None
    """Why artifacts were not kept."""

    journal_error: str | None = None
    """Why the journal is incomplete. Added by the journal, and not written to it."""

    segment: str | None = None
    """Path of a journal segment that just became complete. Added by the journal, and not written to it."""

    @classmethod
    def not_started(cls, error: StartError | None = None, stopped: StopReason | None = None) -> Self:
        """Return the report of a command that was not started, and has written nothing."""
        nothing = StreamReport(path=None, size=0, left_out=0, tail="")
        return cls(
            pid=None,
            status=None,
            started=time.time(),
            duration=0.0,
            peak_memory=None,
            stopped=stopped,
            leftovers_ended=False,
            error=error,
            output_error=None,
            stdout=nothing,
            stderr=nothing,
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Build the report. Keys without a field are ignored."""
        fields = {name: data[name] for name in cls.__annotations__ if name in data}
        if fields["stopped"] is not None:
            fields["stopped"] = StopReason(fields["stopped"])
        if fields["error"] is not None:
            fields["error"] = StartError(**fields["error"])
        for stream in ("stdout", "stderr"):
            fields[stream] = StreamReport(**fields[stream])
        return cls(**fields)
