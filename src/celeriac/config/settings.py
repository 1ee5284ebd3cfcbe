"""Read settings from files, the environment and the command line.

    defaults < celeriac.toml or [tool.celeriac] < CELERIAC_* < options ─► read_settings ─► Settings
                                                                                            ├── connection
                                                                                            ├── worker
                                                                                            └── executor (Config)

A setting has one name everywhere: `log_level` in a file, CELERIAC_LOG_LEVEL, --log-level.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from celeriac.config.executor_config import Config
from celeriac.config.ledger_keep import LedgerKeep
from celeriac.config.masking import masked_text
from celeriac.config.notice_targets import NoticeTargets
from celeriac.config.schema import NO_LEDGER, SETTINGS, InvalidValue, Setting
from celeriac.config.settings_file import CONFIG_VARIABLE, settings_file
from celeriac.config.signing import SETTING, SigningKeys
from celeriac.config.url_files import SUFFIX, URL_SETTINGS, UrlFile, read_url
from celeriac.errors import InvalidConfig
from celeriac.task.task import Secret

PREFIX = "CELERIAC_"
EVENT_VARIABLE = "CELERIAC_EVENT"
"""The variable that tells the command of `on_end` what has happened."""

DEFAULT = "default"
OF_SERVICES = "schedules"
"""The table of a file that is no setting: see `celeriac.runs.schedule`."""

KEY_FILE = f"{SETTING}_file"
MIN_SIMILARITY = 0.65  # of a variable's name and a setting's, for the variable to count as a typing error

REDIS_SCHEMES = ("redis", "rediss", "sentinel", "redis+socket")
AMQP_SCHEMES = ("amqp", "amqps", "pyamqp")
CONNECTION_FIELDS = (
    "operation_timeout",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "sentinel_master",
    "queue_type",
    "key_prefix",
)
TLS_SCHEMES = ("rediss", "amqps")
SAME_KIND = {"pyamqp": "amqp"}


class Connection(Struct, frozen=True, kw_only=True):
    """The URLs of the broker and the result backend, and all other settings for a connection."""

    broker: str
    backend: str
    operation_timeout: float
    """Seconds that one operation on the broker or the result backend may take."""

    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    sentinel_master: str | None = None
    """Sentinel's name for the Redis. Only `sentinel://` needs it."""

    queue_type: str = "classic"
    """The type of RabbitMQ's queues: classic or quorum."""

    key_prefix: str | None = None
    """The beginning of the names of all keys and channels on Redis."""

    signing_key: Secret | None = None
    """The key that signs messages; while keys are being changed, several keys with commas between them."""


class WorkerSettings(Struct, frozen=True, kw_only=True):
    queues: tuple[str, ...]
    concurrency: int
    pool: str
    autoscale: tuple[int, int] | None
    """The largest and the smallest number of processes."""

    name: str | None
    grace: float
    """Seconds for which running commands may continue after the worker receives TERM."""

    idle_exit: float | None
    """Seconds without a task after which the worker ends; None to stay."""

    cpus: float | None
    memory: int | None
    """Bytes."""

    gpus: int | None
    """What the tasks of the worker share, as far as the user says it; None for all that the machine has."""

    max_load: float | str | None
    """The load above which no command starts: a number, or a per cent of the processors."""

    min_free_memory: int | None
    """Bytes of free memory below which no command starts."""

    strict_lease: bool
    """Whether to stop running commands also when the result backend is unavailable for all workers."""

    max_message_size: int
    """Bytes: a worker refuses a message with a larger body."""

    output: str | None
    log_format: str
    log_level: str


class SinkSettings(Struct, frozen=True, kw_only=True):
    """Where metrics and traces are sent."""

    statsd: tuple[str, int] | None
    """Host and port of a StatsD server."""

    statsd_tags: str
    """The form of the labels: name, datadog or influxdb."""

    opentelemetry: bool


class Value(Struct, frozen=True):
    """The value of one setting, and its source."""

    value: Any
    origin: str
    """A file and key, a variable, an option, or "default"."""


class Settings(Struct, frozen=True):
    values: Mapping[str, Value]

    @property
    def connection(self) -> Connection:
        """The connection settings. Raises `InvalidConfig` if the broker or a needed result backend is missing."""
        broker = self._value("broker")
        if broker is None:
            raise InvalidConfig(
                "broker", "none is named", "give --broker-file or --broker, or write it in celeriac.toml"
            )
        check_broker_list(broker)
        backend = self._value("backend") or default_backend(broker)
        if "sentinel" in (scheme_of(broker), scheme_of(backend)) and self._value("sentinel_master") is None:
            raise InvalidConfig(
                "sentinel_master",
                "is missing, and sentinel:// needs it",
                "give Sentinel's name for the Redis, such as mymaster",
            )
        return Connection(
            broker=broker,
            backend=backend,
            signing_key=self._signing_key(),
            **{name: self._value(name) for name in CONNECTION_FIELDS},
        )

    @property
    def worker(self) -> WorkerSettings:
        """The worker's settings. Raises `InvalidConfig` for settings that cannot be combined."""
        worker = WorkerSettings(**{name: self._value(name) for name in WorkerSettings.__struct_fields__})
        if worker.autoscale is not None and worker.pool == "threads":
            raise InvalidConfig(
                "autoscale", "a pool of threads cannot grow or shrink", "give --pool prefork with it, or leave it out"
            )
        for name in ("cpus", "memory", "gpus", "max_load", "min_free_memory"):
            if worker.pool != "threads" and self._value(name) is not None:
                problem = "processes of a pool cannot share it out, or wait for it together"
                raise InvalidConfig(self.values[name].origin, problem, "give --pool threads, or leave it out")
        return worker

    @property
    def sinks(self) -> SinkSettings:
        return SinkSettings(**{name: self._value(name) for name in SinkSettings.__struct_fields__})

    @property
    def ledger(self) -> str | None:
        """The ledger's URL, for SQLAlchemy; None for a run without a ledger."""
        url: str = self._value("ledger")
        return None if url == NO_LEDGER else url

    @property
    def ledger_keep(self) -> LedgerKeep:
        """How long runs and temporary folders are kept."""
        keep: LedgerKeep = self._value("ledger_keep")
        return keep

    @property
    def ledger_limits(self) -> LedgerKeep:
        """The limits of the ledger. One on a server, which others may use, has only an age, and only if it was set.

        Raises `InvalidConfig` if a size was set for a server, and no age.
        """
        keep, ledger = self.ledger_keep, self.ledger
        if ledger is None or ledger.startswith("sqlite"):
            return keep
        if (origin := self.values["ledger_keep"].origin) == DEFAULT:
            return LedgerKeep()
        if keep.days is None and keep.size is not None:
            problem = "limits the size of a ledger, but this one is on a server"
            raise InvalidConfig(origin, problem, 'give an age, for example "90 days"')
        return LedgerKeep(days=keep.days)

    @property
    def notices(self) -> NoticeTargets:
        """The targets that are told of the end of a run."""
        return NoticeTargets(
            command=self._value("on_end"), url=self._value("notify"), first_failure=self._value("notify_first_failure")
        )

    @property
    def executor(self) -> Config:
        return Config(**{name: self._value(name) for name in Config.__struct_fields__})

    def _signing_key(self) -> Secret | None:
        key: Secret | None = self._value(SETTING)
        path: str | None = self._value(KEY_FILE)
        if path is None:
            return key
        if key is not None:
            raise InvalidConfig(KEY_FILE, f"{SETTING} is given too", "give only one of them")
        try:
            key = Secret(Path(path).read_text(encoding="utf-8"))
            SigningKeys.of(key)
        except (OSError, UnicodeDecodeError):
            raise InvalidConfig(KEY_FILE, f"{path!r} cannot be read", "name a readable text file") from None
        except InvalidConfig as error:
            raise InvalidConfig(f"{KEY_FILE}: {path}", error.problem, error.remedy) from None
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
    """Return all settings, each from the strongest source that has it. Raise `InvalidConfig`.

    `options` come from the command line; None and () mean that an option was not given. `config` is a file to read
    instead of the nearest one. `environment` and `folder` are the process's own by default."""
    environment = os.environ if environment is None else environment
    values = {name: Value(setting.default(), DEFAULT) for name, setting in SETTINGS.items()}
    values |= from_file(settings_file(config, environment=environment, folder=folder))
    values |= from_environment(environment)
    if EVENT_VARIABLE in environment:  # the command of on_end may start a run, which must not call it again
        values |= {name: Value(SETTINGS[name].default(), DEFAULT) for name in ("on_end", "notify")}
    values |= from_options(options or {})
    return Settings(values)


def from_options(options: Mapping[str, Any]) -> dict[str, Value]:
    values = {}
    for name, value in options.items():
        if value not in (None, ()):
            given_name = name + SUFFIX if isinstance(value, UrlFile) else name
            origin = "--" + given_name.replace("_", "-")
            values[given_name] = parse_value(SETTINGS[given_name], value, origin)
    return with_urls(values)


def with_urls(values: dict[str, Value]) -> dict[str, Value]:
    """Return the values of one source with the URLs that stand in files. Raises `InvalidConfig`."""
    for name in URL_SETTINGS:
        if (file := values.get(name + SUFFIX)) is not None:
            if name in values:
                raise InvalidConfig(file.origin, f"{name} is given too", "give only one of them")
            origin = f"{file.origin}: {file.value}"
            values[name] = parse_value(SETTINGS[name], read_url(file.value, file.origin), origin)
    return values


def from_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    values = {}
    for variable in sorted(name for name in environment if name.startswith(PREFIX) and name != CONFIG_VARIABLE):
        name = variable.removeprefix(PREFIX).lower()
        if name in SETTINGS and variable.isupper():
            values[name] = parse_value(SETTINGS[name], environment[variable], variable)
        elif near := nearest_settings(name.removesuffix("_url"), MIN_SIMILARITY):
            # Only typing errors are refused: workers and Kubernetes set other variables with this prefix.
            raise InvalidConfig(variable, "there is no such setting", f"did you mean {PREFIX}{near[0].upper()}?")
    return with_urls(values)


def nearest_settings(name: str, cutoff: float = 0.6) -> list[str]:
    """Return the setting that the user probably meant, if there is one."""
    from difflib import get_close_matches  # late: most users write what exists

    return get_close_matches(name, SETTINGS, n=1, cutoff=cutoff)


def from_file(path_and_table: tuple[Path, Mapping[str, Any]] | None) -> dict[str, Value]:
    if path_and_table is None:
        return {}
    path, table = path_and_table
    values = {}
    for key, value in table.items():
        if key == OF_SERVICES:  # the service reads them
            continue
        name = key.replace("-", "_")
        origin = f"{path}: {key}"
        if name not in SETTINGS:
            near = nearest_settings(name)
            remedy = f"did you mean {near[0]}?" if near else "`celeriac config` lists all settings"
            raise InvalidConfig(origin, "there is no such setting", remedy)
        values[name] = parse_value(SETTINGS[name], value, origin)
    return with_urls(values)


def parse_value(setting: Setting, raw: Any, origin: str) -> Value:
    """Parse a text from the environment or an option, or a value from a file. Raise `InvalidConfig`."""
    try:
        value = setting.parse(raw)
        if setting.name in Config.__struct_fields__:
            Config(**{setting.name: value})  # `Config` checks the range
    except (InvalidValue, InvalidConfig) as error:
        raise InvalidConfig(origin, masked_text(error.problem), error.remedy) from None
    return Value(value, origin)


def scheme_of(url: str) -> str:
    return url.partition("://")[0]


def can_hold_claims(backend: str) -> bool:
    """Return whether a result backend is Redis, Valkey or a database: those also hold claims, places and output."""
    scheme = scheme_of(backend)
    return scheme in REDIS_SCHEMES or scheme.startswith("db+")


def split_brokers(broker: str) -> tuple[str, ...]:
    """Return the URLs of a list of brokers, which are separated by semicolons. Sentinels are one broker."""
    if scheme_of(broker) == "sentinel":
        return (broker,)
    return tuple(dict.fromkeys(url.strip() for url in broker.split(";") if url.strip()))


def check_broker_list(broker: str) -> None:
    """Raise `InvalidConfig` for a list of brokers of several kinds."""
    kinds = dict.fromkeys(SAME_KIND.get(scheme_of(url), scheme_of(url)) for url in split_brokers(broker))
    if len(kinds) > 1:
        problem = f"its URLs are of several kinds: {', '.join(map(repr, kinds))}"
        raise InvalidConfig("broker", problem, "give brokers of one kind, all of them with TLS or none")
    if any("://" not in url for url in split_brokers(broker)):
        raise InvalidConfig("broker", "one URL of the list has no kind", "begin each with its kind, such as amqp://")


def default_backend(broker: str) -> str:
    """Return the broker's URL as that of the result backend. Raise `InvalidConfig` for a broker that keeps no
    results, and for several."""
    if len(split_brokers(broker)) > 1:
        raise InvalidConfig(
            "backend",
            "none is named, and several brokers cannot keep results together",
            "give --backend, such as redis://HOST/0 or db+postgresql+psycopg://USER:PASSWORD@HOST/NAME",
        )
    if scheme_of(broker) not in REDIS_SCHEMES:
        raise InvalidConfig(
            "backend",
            f"none is named, and a broker of kind {scheme_of(broker)!r} keeps no results",
            "give --backend, such as redis://HOST/0 or db+postgresql+psycopg://USER:PASSWORD@HOST/NAME",
        )
    return broker
