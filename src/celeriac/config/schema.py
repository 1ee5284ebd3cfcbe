"""Each setting by name: how it is parsed, its default, and how it is displayed.

Every parser takes both a value from a file (a number, a list, a table) and a text from the environment or an option.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from celeriac.config.executor_config import Config
from celeriac.config.ledger_keep import LedgerKeep, keep_of
from celeriac.config.masking import MASK, masked
from celeriac.config.signing import SigningKeys
from celeriac.config.url_files import SUFFIX, URL_SETTINGS
from celeriac.config.urls import EXAMPLES, check_form, check_host, check_url
from celeriac.config.web_urls import EXAMPLE, check_web_url, masked_web_url
from celeriac.errors import InvalidTask
from celeriac.task.task import DEFAULT_QUEUE, Secret, is_unicode

NO_LEDGER = "none"
DEFAULT_KEEP = LedgerKeep(days=90, size=2_000_000_000)
DEFAULT_MAX_MESSAGE_SIZE = 8 * 1024 * 1024  # bytes
LOG_LEVELS = ("debug", "info", "warning", "error")
STATSD_TAGS = ("name", "datadog", "influxdb")
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class InvalidValue(Exception):
    """A value that cannot be used. Neither the problem nor the remedy shows a URL, which may hold a password."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy


class Setting(Struct, frozen=True):
    name: str
    parse: Callable[[Any], Any]
    """Raises `InvalidValue`."""

    default: Callable[[], Any]
    display: Callable[[Any], Any] = lambda value: value
    """Returns the value without its secrets."""


def hidden(value: Any) -> Any:
    return None if value is None else MASK


# — parsers —


def parse_signing_key(raw: Any) -> Secret:
    """Parse one key or several: with commas between them, or in a list. No error shows a key."""
    keys = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
        raise InvalidValue("is not text", "give a key; in a file, also a list of keys")
    SigningKeys([key.strip() for key in keys])
    return Secret(",".join(keys))


def parse_url(raw: Any) -> str:
    """Parse the URL of a broker or a result backend. No error shows it: see `urls`."""
    if not isinstance(raw, str):
        raise InvalidValue("is not text", EXAMPLES)
    if not is_unicode(raw):
        raise InvalidValue("is not Unicode", "write it in UTF-8")
    url = raw
    check_form(url)
    check_url(url)
    check_host(url)
    return url


def parse_text(raw: Any) -> str:
    if not isinstance(raw, str) or not raw:
        raise InvalidValue(f"{raw!r} is not text", "give a text that is not empty")
    return raw


def parse_command(raw: Any) -> str:
    """Parse a command for the shell. No error shows it: it may hold a password."""
    if not isinstance(raw, str) or not raw.strip():
        raise InvalidValue("is not a command", "give a command for the shell, in one text")
    if "\0" in raw or not is_unicode(raw):
        raise InvalidValue("has a character that no command can have", "write it in UTF-8, without NUL")
    return raw


def parse_web_url(raw: Any) -> str:
    """Parse the URL of a web server. No error shows it."""
    if not isinstance(raw, str):
        raise InvalidValue("is not text", EXAMPLE)
    return check_web_url(raw)


def parse_name(raw: Any) -> str:
    name = parse_text(raw)
    if not name.isprintable():
        raise InvalidValue(f"{raw!r} has a character that cannot be printed", "give letters, digits and signs")
    return name


def parse_key_prefix(raw: Any) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"[!-z]+", raw):
        raise InvalidValue(f"{raw!r} is not a prefix", "give letters, digits and signs without spaces, such as team1:")
    return raw


def parse_ledger(raw: Any) -> str:
    """Parse a path, a URL for SQLAlchemy, or "none"."""
    if not isinstance(raw, str):
        raise InvalidValue("is not text", "give a path or a URL as a text")
    name = parse_text(raw)
    if "://" in name and not name.startswith("sqlite"):
        if not is_unicode(name):
            raise InvalidValue("is not Unicode", "write it in UTF-8")
        check_form(name)
        check_url(name)
    if name == NO_LEDGER or "://" in name:
        return name
    try:
        return sqlite_url(Path(name).expanduser())
    except RuntimeError:
        raise InvalidValue(f"{name!r} is in a home folder that is not known", "give a path without ~") from None


def parse_ledger_keep(raw: Any) -> LedgerKeep:
    """Parse an age, a size, or both."""
    if isinstance(raw, str) and (keep := keep_of(raw)) is not None:
        return keep
    raise InvalidValue(f"{raw!r} is not a limit", 'give for example "90 days or 2 GB", "30 days" or "everything"')


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path.absolute()}"


def default_ledger() -> str:
    """Return the ledger of this user on this machine, in the state folder of the XDG base directories.

    Return `NO_LEDGER` for a user without a home folder.
    """
    state = os.environ.get("XDG_STATE_HOME")
    try:
        folder = Path(state) if state and Path(state).is_absolute() else Path("~/.local/state").expanduser()
    except RuntimeError:
        return NO_LEDGER
    return sqlite_url(folder / "celeriac" / "ledger.db")


def parse_file(raw: Any) -> str:
    path = parse_text(raw)
    if "://" in path:
        raise InvalidValue("is a URL, not the name of a file", "write it into a file, and name that file")
    if not os.access(path, os.R_OK):
        raise InvalidValue(f"{path!r} cannot be read", "name a readable file")
    return path


def from_text(kind: Callable[[str], Any], raw: Any) -> Any:
    """Convert a text, or return None if it cannot be converted. Return any other value as it is."""
    with contextlib.suppress(ValueError):
        return kind(raw) if isinstance(raw, str) else raw
    return None


def parse_int(raw: Any) -> int:
    """Parse a whole number. `Config` checks its range."""
    value = from_text(int, raw)
    if type(value) is not int:
        raise InvalidValue(f"{raw!r} is not a whole number", "give for example 5")
    return int(value)


def parse_positive_int(raw: Any) -> int:
    value = parse_int(raw)
    if value < 1:
        raise InvalidValue(f"{value} is too few", "give 1 or more")
    return value


def parse_seconds(raw: Any) -> float:
    value = from_text(float, raw)
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise InvalidValue(f"{raw!r} is not a number of seconds", "give for example 2 or 0.5")
    return float(value)


def parse_cpus(raw: Any) -> float:
    """Parse a number of CPUs. `Config` checks its range."""
    value = from_text(float, raw)
    if type(value) not in (int, float):
        raise InvalidValue(f"{raw!r} is not a number of CPUs", "give for example 2 or 0.5")
    return float(value)


def parse_memory(raw: Any) -> int:
    """Parse a number of bytes, or a text such as "2G"."""
    from celeriac.task.resources import to_memory  # late: few users set it

    try:
        return to_memory("memory", raw)
    except InvalidTask as error:
        raise InvalidValue(error.problem, error.remedy) from None


def parse_idle_exit(raw: Any) -> float:
    value = parse_seconds(raw)
    if value < 1:
        raise InvalidValue(f"{raw!r} is too short", "give 1 second or more, for example 60")
    return value


def parse_load(raw: Any) -> float | str:
    """Parse a number, or a per cent such as "100%". `Config` checks its range."""
    value = from_text(float, raw)
    return str(raw).replace(" ", "") if value is None else value


def parse_bool(raw: Any) -> bool:
    value = BOOLEANS.get(raw.lower()) if isinstance(raw, str) else raw
    if type(value) is not bool:
        raise InvalidValue(f"{raw!r} is neither true nor false", "give true or false")
    return value


def parse_queues(raw: Any) -> tuple[str, ...]:
    """Parse names: in a list, or with commas between them."""
    names = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise InvalidValue(f"{raw!r} names no queues", "write for example default,gpu; in a file, a list of texts")
    return tuple(dict.fromkeys(parse_name(name.strip()) for name in names))


def parse_limits(raw: Any) -> dict[str, int]:
    """Parse a table, or QUEUE=N with commas between them."""
    remedy = "write QUEUE=N, for example gpu=1; in a file, a table such as {gpu = 1}"
    if isinstance(raw, str):
        pairs = [pair.rpartition("=") for pair in raw.split(",")]
        raw = {queue.strip(): number for queue, _, number in pairs if queue.strip()}
        if len(raw) != len(pairs):
            raise InvalidValue("names no limits", remedy)
    if not isinstance(raw, dict):
        raise InvalidValue(f"{raw!r} names no limits", remedy)
    return {queue: parse_positive_int(limit) for queue, limit in raw.items()}


def parse_rates(raw: Any) -> dict[str, str]:
    """Parse a table, or NAME=RATE with commas between them. `Config` checks the rates."""
    remedy = "write NAME=RATE, for example db=10/m; in a file, a table such as {db = '10/m'}"
    if isinstance(raw, str):
        pairs = [pair.rpartition("=") for pair in raw.split(",")]
        raw = {name.strip(): rate.strip() for name, _, rate in pairs if name.strip()}
        if len(raw) != len(pairs):
            raise InvalidValue("names no rates", remedy)
    if not isinstance(raw, dict) or not all(isinstance(rate, str) for rate in raw.values()):
        raise InvalidValue(f"{raw!r} names no rates", remedy)
    return raw


def parse_autoscale(raw: Any) -> tuple[int, int]:
    pair = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise InvalidValue(f"{raw!r} is not two numbers", "give the most and the fewest processes, for example 8,2")
    most, fewest = (parse_positive_int(number) for number in pair)
    if most < fewest:
        raise InvalidValue(f"at most {most} is less than at least {fewest}", "give the larger number first, as in 8,2")
    return most, fewest


def parse_host_and_port(raw: Any) -> tuple[str, int]:
    """Parse HOST:PORT, or [HOST]:PORT for an IPv6 address."""
    remedy = "give HOST:PORT, for example localhost:8125"
    host, _, port = parse_name(raw).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidValue(f"{raw!r} is not an address", "give [HOST]:PORT for an IPv6 address")
    if not re.fullmatch(r"[^\s/@]+", host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        raise InvalidValue(f"{raw!r} is not an address", remedy)
    return host, int(port)


def show_host_and_port(address: Any) -> str | None:
    if address is None:
        return None
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def choice(*choices: str) -> Callable[[Any], str]:
    """Return a parser that accepts these texts."""

    def parse(raw: Any) -> str:
        if raw not in choices:
            raise InvalidValue(f"{raw!r} is not known", f"give one of {', '.join(choices)}")
        return str(raw)

    return parse


# — settings —


PARSERS: dict[str, Callable[[Any], Any]] = {
    "int": parse_int,
    "int | None": parse_int,
    "float | None": parse_cpus,
    "float": parse_seconds,
    "bool": parse_bool,
    "float | str | None": parse_load,
    "Mapping[str, int]": parse_limits,
    "Mapping[str, str]": parse_rates,
}
"""The parser for each type of a field of `Config`."""

SIZES = ("memory", "min_free_memory")
"""The fields of `Config` that are numbers of bytes."""


def executor_setting(name: str) -> Setting:
    """Return the setting for a field of `Config`, with the field's default."""
    parse = parse_memory if name in SIZES else PARSERS[Config.__annotations__[name]]
    return Setting(name, parse, lambda: getattr(Config(), name))


def no_default() -> None:
    return None


ALL = [
    Setting("broker", parse_url, no_default, masked),
    Setting("backend", parse_url, no_default, masked),
    Setting("tls_ca", parse_file, no_default),
    Setting("tls_cert", parse_file, no_default),
    Setting("tls_key", parse_file, no_default),
    Setting("sentinel_master", parse_text, no_default),
    Setting("queue_type", choice("classic", "quorum"), lambda: "classic"),
    Setting("key_prefix", parse_key_prefix, no_default),
    Setting("signing_key", parse_signing_key, no_default, hidden),
    Setting("signing_key_file", parse_file, no_default),
    Setting("ledger", parse_ledger, default_ledger, masked),
    *(Setting(name + SUFFIX, parse_file, no_default) for name in URL_SETTINGS),
    Setting("ledger_keep", parse_ledger_keep, lambda: DEFAULT_KEEP, str),
    *map(executor_setting, Config.__struct_fields__),
    Setting("queues", parse_queues, lambda: (DEFAULT_QUEUE,)),
    Setting("concurrency", parse_positive_int, lambda: os.cpu_count() or 1),
    Setting("pool", choice("threads", "prefork"), lambda: "threads"),
    Setting("autoscale", parse_autoscale, no_default),
    Setting("name", parse_name, no_default),
    Setting("grace", parse_seconds, lambda: 30.0),
    Setting("idle_exit", parse_idle_exit, no_default),
    Setting("strict_lease", parse_bool, lambda: False),
    Setting("max_message_size", parse_positive_int, lambda: DEFAULT_MAX_MESSAGE_SIZE),
    Setting("output", parse_text, no_default),
    Setting("web_token_file", parse_file, no_default),
    Setting("statsd", parse_host_and_port, no_default, show_host_and_port),
    Setting("statsd_tags", choice(*STATSD_TAGS), lambda: "name"),
    Setting("opentelemetry", parse_bool, lambda: False),
    Setting("on_end", parse_command, no_default, hidden),
    Setting("notify", parse_web_url, no_default, masked_web_url),
    Setting("notify_first_failure", parse_bool, lambda: False),
    Setting("log_format", choice("text", "json"), lambda: "text"),
    Setting("log_level", choice(*LOG_LEVELS), lambda: "info"),
]
SETTINGS = {setting.name: setting for setting in ALL}
