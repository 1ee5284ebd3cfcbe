"""Every setting by name: what it means, what it may be, and what it is if nobody says.

Each kind reads both what a file gives (numbers, lists, tables) and text, as the environment and options give it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from celeriac.config.executor_config import Config
from celeriac.config.signing import SigningKeys
from celeriac.task.task import DEFAULT_QUEUE, Secret

NO_LEDGER = "none"
LEVELS = ("debug", "info", "warning", "error")
PASSWORD = re.compile(r"(?<=://)([^:/@]*):[^;]*@")
QUERY_PASSWORD = re.compile(r"(?i)([?&](?:password|passwd|pwd)=)[^&]*")


class InvalidValue(Exception):
    """What is wrong with a value, and what would be right. Never the value of a URL: it may hold a password."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    read: Callable[[Any], Any]
    """Raises `Wrong`."""

    default: Callable[[], Any]
    shown: Callable[[Any], Any] = lambda value: value
    """As it may be shown to anybody."""


def masked(url: Any) -> Any:
    """A URL without its passwords; several of them too, as Sentinel has it."""
    if not isinstance(url, str):
        return url
    return QUERY_PASSWORD.sub(r"\1******", PASSWORD.sub(r"\1:******@", url))


def hidden(value: Any) -> Any:
    return None if value is None else "******"


def signing_key(given: Any) -> Secret:
    """One, or several with commas between them or in a list. No error shows it."""
    keys = given.split(",") if isinstance(given, str) else given
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
        raise InvalidValue("is no text", "give one, in a file also a list of texts")
    SigningKeys([key.strip() for key in keys])
    return Secret(",".join(keys))


def url(given: Any) -> str:
    if not isinstance(given, str) or not re.match(r"[A-Za-z][\w.+-]*://", given):
        raise InvalidValue("is no URL", "write for example redis://HOST:6379/0 or amqp://USER:PASSWORD@HOST//")
    return given


def text(given: Any) -> str:
    if not isinstance(given, str) or not given:
        raise InvalidValue(f"{given!r} is not a text", "give one")
    return given


def ledger(given: Any) -> str:
    """A path, SQLAlchemy's URL of a database, or "none"."""
    name = text(given)
    if name == NO_LEDGER or "://" in name:
        return name
    return sqlite_url(Path(name).expanduser())


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path.absolute()}"


def default_ledger() -> str:
    """Of this user on this machine: where the XDG base directories say that state is kept."""
    state = os.environ.get("XDG_STATE_HOME")
    folder = Path(state) if state and Path(state).is_absolute() else Path("~/.local/state").expanduser()
    return sqlite_url(folder / "celeriac" / "ledger.db")


def file(given: Any) -> str:
    path = text(given)
    if not os.access(path, os.R_OK):
        raise InvalidValue(f"{path!r} cannot be read", "name a file that can")
    return path


def from_text(kind: Callable[[str], Any], given: Any) -> Any:
    """What a text says, None if it says nothing of that kind; what is no text as it is."""
    with contextlib.suppress(ValueError):
        return kind(given) if isinstance(given, str) else given
    return None


def number(given: Any) -> int:
    """A whole number; how small it may be, others say."""
    value = from_text(int, given)
    if type(value) is not int:
        raise InvalidValue(f"{given!r} is not a whole number", "give for example 5")
    return int(value)


def positive(given: Any) -> int:
    value = number(given)
    if value < 1:
        raise InvalidValue(f"{value} is too few", "give 1 or more")
    return value


def seconds(given: Any) -> float:
    value = from_text(float, given)
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise InvalidValue(f"{given!r} is not a number of seconds", "give for example 2 or 0.5")
    return float(value)


def yes_or_no(given: Any) -> bool:
    said = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    value = said.get(given.lower()) if isinstance(given, str) else given
    if type(value) is not bool:
        raise InvalidValue(f"{given!r} is neither", "give true or false")
    return value


def words(given: Any) -> tuple[str, ...]:
    """Names in a list, or with commas between them."""
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise InvalidValue(
            f"{given!r} does not name queues", "write for example default,gpu, in a file a list of texts"
        )
    return tuple(dict.fromkeys(name.strip() for name in names))


def limits(given: Any) -> dict[str, int]:
    """A table, or QUEUE=N with commas between them."""
    remedy = "write QUEUE=N, for example gpu=1, in a file a table such as {gpu = 1}"
    if isinstance(given, str):
        pairs = [pair.rpartition("=") for pair in given.split(",")]
        given = {queue.strip(): number for queue, _, number in pairs if queue.strip()}
        if len(given) != len(pairs):
            raise InvalidValue("names no limits", remedy)
    if not isinstance(given, dict):
        raise InvalidValue(f"{given!r} names no limits", remedy)
    return {queue: positive(limit) for queue, limit in given.items()}


def autoscale(given: Any) -> tuple[int, int]:
    pair = given.split(",") if isinstance(given, str) else given
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise InvalidValue(f"{given!r} is not two numbers", "give the most and the fewest processes, for example 8,2")
    most, fewest = (positive(one) for one in pair)
    if most < fewest:
        raise InvalidValue(f"at most {most} is less than at least {fewest}", "give the larger number first, as in 8,2")
    return most, fewest


def one_of(*choices: str) -> Callable[[Any], str]:
    def read(given: Any) -> str:
        if given not in choices:
            raise InvalidValue(f"{given!r} is not known", f"give one of {', '.join(choices)}")
        return str(given)

    return read


def of_executor(name: str) -> Setting:
    """A field of `Config`, with its default there."""
    field = next(field for field in fields(Config) if field.name == name)
    factory = field.default_factory
    return Setting(name, OF_TYPE[str(field.type)], (lambda: field.default) if factory is MISSING else factory)


OF_TYPE: dict[str, Callable[[Any], Any]] = {
    "int": number,
    "int | None": number,
    "float": seconds,
    "bool": yes_or_no,
    "Mapping[str, int]": limits,
}
"""How the fields of `Config` are read, by what they hold."""


def nothing() -> None:
    return None


ALL = [
    Setting("broker", url, nothing, masked),
    Setting("backend", url, nothing, masked),
    Setting("tls_ca", file, nothing),
    Setting("tls_cert", file, nothing),
    Setting("tls_key", file, nothing),
    Setting("sentinel_master", text, nothing),
    Setting("signing_key", signing_key, nothing, hidden),
    Setting("signing_key_file", file, nothing),
    Setting("ledger", ledger, default_ledger, masked),
    *(of_executor(field.name) for field in fields(Config)),
    Setting("queues", words, lambda: (DEFAULT_QUEUE,)),
    Setting("concurrency", positive, lambda: os.cpu_count() or 1),
    Setting("pool", one_of("threads", "prefork"), lambda: "threads"),
    Setting("autoscale", autoscale, nothing),
    Setting("name", text, nothing),
    Setting("grace", seconds, lambda: 30.0),
    Setting("strict_lease", yes_or_no, lambda: False),
    Setting("output", text, nothing),
    Setting("log_format", one_of("text", "json"), lambda: "text"),
    Setting("log_level", one_of(*LEVELS), lambda: "info"),
]
SETTINGS = {setting.name: setting for setting in ALL}
