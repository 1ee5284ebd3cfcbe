"""What the files, the environment and the command line say: read here, and nowhere else.

    defaults < celeriac.toml or [tool.celeriac] < CELERIAC_* < options ─► read_settings ─► Settings
                                                                                            ├── connection
                                                                                            ├── worker
                                                                                            └── executor (Config)

A setting has one name everywhere: `log_level` in a file, CELERIAC_LOG_LEVEL, --log-level.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from celeriac.config.executor_config import Config
from celeriac.config.schema import NO_LEDGER, SETTINGS, InvalidValue, Setting
from celeriac.config.signing import SETTING, SigningKeys
from celeriac.errors import InvalidConfig
from celeriac.task.task import Secret

FILE = "celeriac.toml"
PREFIX = "CELERIAC_"
CONFIG_VARIABLE = "CELERIAC_CONFIG"
DEFAULT = "default"
KEY_FILE = f"{SETTING}_file"
ALIKE = 0.65  # how much a variable must resemble a setting to be taken for a slip of the pen

REDIS_SCHEMES = ("redis", "rediss", "sentinel", "redis+socket")
AMQP_SCHEMES = ("amqp", "amqps", "pyamqp")
REACHED_BY = ("operation_timeout", "tls_ca", "tls_cert", "tls_key", "sentinel_master")
TLS_SCHEMES = ("rediss", "amqps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How broker and result backend are reached."""

    broker: str
    backend: str
    operation_timeout: float
    """Seconds that one operation on either may take."""

    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    sentinel_master: str | None = None
    """What Sentinel calls the Redis; for `sentinel://` alone."""

    signing_key: Secret | None = None
    """What messages are signed with; several, with commas between them, where keys are being changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    queues: tuple[str, ...]
    concurrency: int
    pool: str
    autoscale: tuple[int, int] | None
    """The most and the fewest processes."""

    name: str | None
    grace: float
    """Seconds that running commands are given after a TERM."""

    strict_lease: bool
    """Whether what runs is ended also when the result backend is away for everybody."""

    output: str | None
    log_format: str
    log_level: str


@dataclass(frozen=True, slots=True)
class Value:
    """One setting, and who said so."""

    value: Any
    origin: str
    """A file and key, a variable, an option, or "default"."""


@dataclass(frozen=True, slots=True)
class Settings:
    values: Mapping[str, Value]

    @property
    def connection(self) -> Connection:
        """Raises `InvalidConfig` if no broker is named, or no result backend where one must be."""
        broker = self._value("broker")
        if broker is None:
            raise InvalidConfig("broker", "none is named", "give --broker, CELERIAC_BROKER, or broker in celeriac.toml")
        backend = self._value("backend") or backend_beside(broker)
        if "sentinel" in (scheme_of(broker), scheme_of(backend)) and self._value("sentinel_master") is None:
            raise InvalidConfig(
                "sentinel_master",
                "is missing beside sentinel://",
                "say what Sentinel calls the Redis, such as mymaster",
            )
        return Connection(
            broker=broker,
            backend=backend,
            signing_key=self._signing_key(),
            **{name: self._value(name) for name in REACHED_BY},
        )

    @property
    def worker(self) -> WorkerSettings:
        """Raises `InvalidConfig` for settings that do not go together."""
        worker = WorkerSettings(**{name: self._value(name) for name in WorkerSettings.__slots__})
        if worker.autoscale is not None and worker.pool == "threads":
            raise InvalidConfig(
                "autoscale", "a pool of threads neither grows nor shrinks", "give --pool prefork with it, or leave it"
            )
        return worker

    @property
    def ledger(self) -> str | None:
        """SQLAlchemy's URL of a database; None if none is to be kept."""
        url: str = self._value("ledger")
        return None if url == NO_LEDGER else url

    @property
    def executor(self) -> Config:
        return Config(**{name: self._value(name) for name in Config.__slots__})

    def _signing_key(self) -> Secret | None:
        key: Secret | None = self._value(SETTING)
        path: str | None = self._value(KEY_FILE)
        if path is None:
            return key
        if key is not None:
            raise InvalidConfig(KEY_FILE, f"{SETTING} is given too", "give one of them")
        try:
            key = Secret(Path(path).read_text(encoding="utf-8"))
            SigningKeys.of(key)
        except (OSError, UnicodeDecodeError):
            raise InvalidConfig(KEY_FILE, f"{path!r} cannot be read", "name a text file that can") from None
        except InvalidConfig as wrong:
            raise InvalidConfig(f"{KEY_FILE}: {path}", wrong.problem, wrong.remedy) from None
        return key

    def _value(self, name: str) -> Any:
        return self.values[name].value


def read_settings(
    options: Mapping[str, Any] | None = None,
    *,
    config: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """All settings, each from the strongest source that names it. Raises `InvalidConfig`.

    `options` are those of the command line; None and () are options that were not given. `config` is a file to read
    instead of the nearest one. `environment` and `folder` are the process's own unless given.
    """
    environment = os.environ if environment is None else environment
    values = {name: Value(setting.default(), DEFAULT) for name, setting in SETTINGS.items()}
    values |= from_file(config or environment.get(CONFIG_VARIABLE), folder or Path.cwd())
    values |= from_environment(environment)
    values |= from_options(options or {})
    return Settings(values)


def from_options(options: Mapping[str, Any]) -> dict[str, Value]:
    given = {name: value for name, value in options.items() if value not in (None, ())}
    return {name: checked(SETTINGS[name], value, "--" + name.replace("_", "-")) for name, value in given.items()}


def from_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    values = {}
    for variable in sorted(name for name in environment if name.startswith(PREFIX) and name != CONFIG_VARIABLE):
        name = variable.removeprefix(PREFIX).lower()
        if name in SETTINGS and variable.isupper():
            values[name] = checked(SETTINGS[name], environment[variable], variable)
        elif near := get_close_matches(name, SETTINGS, n=1, cutoff=ALIKE):
            # Others have variables of this prefix: what a worker tells its commands, what Kubernetes tells everybody.
            raise InvalidConfig(variable, "there is no such setting", f"did you mean {PREFIX}{near[0].upper()}?")
    return values


def from_file(named: str | None, folder: Path) -> dict[str, Value]:
    found = read_named(Path(named)) if named else nearest(folder)
    if found is None:
        return {}
    path, table = found
    values = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        where = f"{path}: {key}"
        if name not in SETTINGS:
            near = get_close_matches(name, SETTINGS, n=1)
            remedy = f"did you mean {near[0]}?" if near else "`celeriac config` lists those there are"
            raise InvalidConfig(where, "there is no such setting", remedy)
        values[name] = checked(SETTINGS[name], value, where)
    return values


def read_named(path: Path) -> tuple[Path, Mapping[str, Any]]:
    table = read_table(path)
    if table is None:
        raise InvalidConfig(str(path), "has no table [tool.celeriac]", "add it, or name another file")
    return path, table


def nearest(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """The first file on the way up that has something to say."""
    for place in (folder, *folder.parents):
        for path in (place / FILE, place / "pyproject.toml"):
            if path.is_file() and (table := read_table(path)) is not None:
                return path, table
    return None


def read_table(path: Path) -> Mapping[str, Any] | None:
    """None for a pyproject.toml without [tool.celeriac]."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.name == "pyproject.toml" and "celeriac" not in text:
            return None
        content = tomllib.loads(text)
    except OSError as error:
        raise InvalidConfig(str(path), str(error.strerror), "name a file that can be read") from None
    except ValueError as error:
        raise InvalidConfig(str(path), f"is no TOML: {error}", "mend it, or name another file") from None
    if path.name != "pyproject.toml":
        return content
    tools = content.get("tool", {})
    table = tools.get("celeriac") if isinstance(tools, dict) else None
    return table if isinstance(table, dict) else None


def checked(setting: Setting, given: Any, where: str) -> Value:
    """Text from the environment or an option, a value from a file. Raises `InvalidConfig`."""
    try:
        value = setting.read(given)
        if setting.name in Config.__slots__:
            Config(**{setting.name: value})  # what it may be, it knows best
    except (InvalidValue, InvalidConfig) as wrong:
        raise InvalidConfig(where, wrong.problem, wrong.remedy) from None
    return Value(value, where)


def scheme_of(url: str) -> str:
    return url.partition("://")[0]


def backend_beside(broker: str) -> str:
    """Where results go when nothing says so: to the broker's own server, if that can keep them."""
    if scheme_of(broker) not in REDIS_SCHEMES:
        raise InvalidConfig(
            "backend",
            f"none is named, and a broker of kind {scheme_of(broker)!r} keeps no results",
            "give --backend, such as redis://HOST/0 or db+postgresql+psycopg://USER:PASSWORD@HOST/NAME",
        )
    return broker
