"""What Airflow is configured with, as Celery and Celeriac want it: for the scheduler's side and for the worker's.

[celery], [celery_broker_transport_options], … ─► celery_settings ─► app_of ─► Celery app
[celery], [celeriac]                           ─► executor_config ─► Config

Every default is named here: core knows only some of them while its own Celery provider is not installed.
"""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from airflow.exceptions import AirflowConfigException
from celery import Celery

from celeriac.broker.app import backend_settings, invalid_config_for, priority_settings
from celeriac.config.executor_config import Config
from celeriac.config.settings import scheme_of
from celeriac.config.signing import SigningKeys
from celeriac.errors import InvalidConfig

APP_NAME = "airflow.providers.celery.executors.celery_executor"
BROKER_URL = "redis://redis:6379/0"
DEFAULT_CONFIG_OPTIONS = {
    "airflow.providers.celery.executors.default_celery.DEFAULT_CELERY_CONFIG",
    "airflow.config_templates.default_celery.DEFAULT_CELERY_CONFIG",
}
"""What `celery_config_options` says when nobody has said anything; it can be imported with the other provider alone."""

VISIBILITY_TIMEOUT = 24 * 3600  # seconds
WITH_VISIBILITY_TIMEOUT = ("redis", "rediss", "sqs", "sentinel")
JSON_TRANSPORT_OPTIONS = (
    "client-config",
    "fetch_message_attributes",
    "kafka_admin_config",
    "kafka_common_config",
    "kafka_consumer_config",
    "kafka_producer_config",
    "predefined_exchanges",
    "predefined_queues",
    "queue_tags",
    "sentinel_kwargs",
    "sqs-creation-attributes",
)
PUBLISH_DEADLINE = 7 * 24 * 3600.0  # seconds: a broker that is away is waited for, and Airflow has a timeout of its own
NO_LIMIT = 2**31 - 1  # slots, where [core] parallelism is 0


class InvalidAirflowConfig(InvalidConfig, AirflowConfigException):
    """One option of Airflow's configuration is wrong. Says which and what would be right, and shows no secret."""


class Options:
    """An executor's configuration, or Airflow's as a whole, read the same way in all versions."""

    def __init__(self, conf: Any) -> None:
        load_providers_configuration()
        self._conf = conf
        self.team_name: str | None = getattr(conf, "team_name", None)

    def given(self, section: str, key: str) -> str | None:
        value = self._conf.get(section, key, fallback=None)
        return None if value is None else str(value).strip()  # a command ends its line

    def text(self, section: str, key: str, default: str = "") -> str:
        value = self.given(section, key)
        return default if value is None else value

    def yes_or_no(self, section: str, key: str, *, default: bool) -> bool:
        value = self.given(section, key)
        if value is None:
            return default
        word = value.partition("#")[0].strip().lower()
        if word not in ("t", "true", "1", "f", "false", "0"):
            raise wrong(section, key, f"{value!r} is neither", "set True or False")
        return word in ("t", "true", "1")

    def whole(self, section: str, key: str, default: int) -> int:
        number = self.number(section, key, default, "a whole number", "16")
        if number != int(number):
            raise wrong(section, key, f"{number!r} is not a whole number", "set for example 16")
        return int(number)

    def seconds(self, section: str, key: str, default: float) -> float:
        """Above 0, but the default may be anything."""
        number = self.number(section, key, default, "a number of seconds", "1.0")
        if number != default and not 0 < number < float("inf"):
            raise wrong(section, key, f"{number!r} is not a number of seconds above 0", "set for example 1.0")
        return number

    def number(self, section: str, key: str, default: float, kind: str, example: str) -> float:
        value = self.given(section, key)
        try:
            return default if value is None else float(value)
        except ValueError:
            raise wrong(section, key, f"{value!r} is not {kind}", f"set for example {example}") from None

    def table(self, section: str, key: str) -> dict[str, Any]:
        """A JSON object. What is wrong with it is told without showing it: it may hold passwords."""
        return json_object(section, key, self.given(section, key) or "{}")

    def section(self, name: str) -> dict[str, Any]:
        """Numbers and booleans as such, as Airflow reads them."""
        getsection = getattr(self._conf, "getsection", None)
        if getsection is None and self.team_name is None:  # an executor's configuration, in 3.1
            from airflow.configuration import conf

            getsection = conf.getsection
        found = None if getsection is None else getsection(name)
        return self.from_environment(name) if found is None else dict(found)

    def from_environment(self, section: str) -> dict[str, Any]:
        """Airflow 3.2 overlooks variables of a section that is in no file."""
        team = f"{self.team_name.upper()}___" if self.team_name else ""
        prefix = f"AIRFLOW__{team}{section.upper()}__"
        names = [name.removeprefix(prefix) for name in os.environ if name.startswith(prefix)]
        keys = {name.removesuffix("_CMD").removesuffix("_SECRET").lower() for name in names}
        return {key: plain(self.text(section, key)) for key in sorted(keys)}


def load_providers_configuration() -> None:
    """Without it the options that only a provider describes have no default, and no _CMD and _SECRET form."""
    from airflow.utils.providers_configuration_loader import providers_configuration_loaded

    providers_configuration_loaded(lambda: None)()


def plain(text: str) -> Any:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"t": True, "true": True, "f": False, "false": False}.get(text.lower(), text)


def wrong(section: str, key: str, problem: str, remedy: str) -> InvalidAirflowConfig:
    return InvalidAirflowConfig(f"[{section}] {key}", problem, remedy)


def json_object(section: str, key: str, text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise wrong(section, key, "is no JSON object", 'write for example {"name": "value"}')
    return found


# — for the executor —


def executor_config(conf: Any, parallelism: int) -> Config:
    options = Options(conf)
    return Config(
        parallelism=parallelism or NO_LIMIT,
        operation_timeout=options.seconds("celery", "operation_timeout", 1.0),
        publish_deadline=PUBLISH_DEADLINE,
        delete_results=options.yes_or_no("celeriac", "delete_results", default=True),
    )


# — for both sides: signatures, the app —


def signing_keys(conf: Any) -> SigningKeys | None:
    """Raises `InvalidAirflowConfig`, which shows no key."""
    with named("[celeriac] signing_key"):
        return SigningKeys.of(Options(conf).given("celeriac", "signing_key") or None)


def signed_part(task_id: str, workload: str) -> dict[str, Any]:
    return {"id": task_id, "workload": workload}


def app_of(conf: Any, *, team_name: str | None, operation_timeout: float, for_worker: bool = False) -> Celery:
    """The Celery app of a team, or of everybody. `operation_timeout`, in seconds, bounds one operation of the backend.

    A worker's connection notices when it is dead, and its results are tried again until they are stored.
    Raises `InvalidAirflowConfig`.
    """
    options = Options(conf)
    settings = celery_settings(conf)
    under = backend_settings(operation_timeout)
    if for_worker:
        from celeriac.worker.start import connection_options, lasting_settings

        under |= lasting_settings()
        under["broker_transport_options"] = connection_options(settings["broker_url"])
    settings = over(under, settings)
    if options.yes_or_no("celeriac", "broker_priority", default=False):
        settings = priority_settings(settings["broker_url"], settings)
    name = options.text("celery", "celery_app_name", APP_NAME)
    app = Celery(
        f"{name}_{team_name}" if team_name else name,
        config_source=settings,
        set_as_current=False,
    )
    check_kinds(app)
    if for_worker:
        from celeriac.worker.start import keep_trying

        keep_trying(app)
    return app


def over(under: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is configured goes over what is ours, also inside the settings that are tables."""
    merged = {**under, **settings}
    for name, ours in under.items():
        if isinstance(ours, dict) and isinstance(merged[name], dict):
            merged[name] = {**ours, **merged[name]}
    return merged


def check_kinds(app: Celery) -> None:
    with (
        named(),
        invalid_config_for("[celery] broker_url", app.conf.broker_url, "set an address of Redis, Valkey or RabbitMQ"),
    ):
        _ = app.connection_for_write().transport
    with (
        named(),
        invalid_config_for(
            "[celery] result_backend",
            app.conf.result_backend,
            "set Redis, Valkey, or a database as db+postgresql+psycopg://…",
        ),
    ):
        _ = app.backend


@contextmanager
def named(setting: str | None = None) -> Iterator[None]:
    """Airflow's kind of error for ours, and its name of the setting."""
    try:
        yield
    except InvalidConfig as error:
        raise InvalidAirflowConfig(setting or error.setting, error.problem, error.remedy) from None


# — Celery's settings —


def celery_settings(conf: Any) -> dict[str, Any]:
    """What the options of Airflow say to Celery, and nothing of ours. Raises `InvalidAirflowConfig`."""
    options = Options(conf)
    broker_url = options.text("celery", "broker_url", BROKER_URL)
    result_backend = result_backend_of(options)
    default_queue = options.text("operators", "default_queue", "default")
    settings: dict[str, Any] = {
        "accept_content": ["json"],
        "event_serializer": "json",
        "worker_prefetch_multiplier": options.whole("celery", "worker_prefetch_multiplier", 1),
        "task_acks_late": options.yes_or_no("celery", "task_acks_late", default=True),
        "task_default_queue": default_queue,
        "task_default_exchange": default_queue,
        "task_track_started": options.yes_or_no("celery", "task_track_started", default=True),
        "broker_url": broker_url,
        "broker_transport_options": broker_transport_options(options, broker_url),
        "broker_connection_retry_on_startup": options.yes_or_no(
            "celery", "broker_connection_retry_on_startup", default=True
        ),
        "result_backend": result_backend,
        "result_backend_transport_options": result_backend_transport_options(options),
        "database_engine_options": database_engine_options(options, result_backend),
        "worker_concurrency": options.whole("celery", "worker_concurrency", 16),
        "worker_enable_remote_control": options.yes_or_no("celery", "worker_enable_remote_control", default=True),
        "worker_redirect_stdouts": False,
        "worker_hijack_root_logger": False,
        **options.table("celery", "extra_celery_config"),
    }
    if options.yes_or_no("celery", "ssl_active", default=False):
        settings["broker_use_ssl"] = broker_use_ssl(options, broker_url)
    users = celery_config_options(options)
    if options.team_name is not None:  # that table may have been made from what holds for everybody
        users = {name: it for name, it in users.items() if name not in ("broker_url", "result_backend")}
    return {**settings, **users}


def result_backend_of(options: Options) -> str:
    if given := options.given("celery", "result_backend"):
        return given
    if options.team_name is not None:
        variable = f"AIRFLOW__{options.team_name.upper()}___CELERY__RESULT_BACKEND"
        raise wrong("celery", "result_backend", f"team {options.team_name!r} has none of its own", f"set {variable}")
    database = options.text("database", "sql_alchemy_conn")
    driver = "psycopg" if has_psycopg_dialect() else "psycopg2"
    return "db+" + database.replace("postgresql://", f"postgresql+{driver}://", 1)


def has_psycopg_dialect() -> bool:
    return int(version("sqlalchemy").partition(".")[0]) >= 2 and find_spec("psycopg") is not None


def broker_transport_options(options: Options, broker_url: str) -> dict[str, Any]:
    section = "celery_broker_transport_options"
    given = options.section(section)
    if scheme_of(broker_url) in WITH_VISIBILITY_TIMEOUT:
        given.setdefault("visibility_timeout", VISIBILITY_TIMEOUT)
    return {**given, **{key: json_object(section, key, given[key]) for key in JSON_TRANSPORT_OPTIONS if key in given}}


def result_backend_transport_options(options: Options) -> dict[str, Any]:
    section, key = "celery_result_backend_transport_options", "sentinel_kwargs"
    given = options.section(section)
    return {**given, key: json_object(section, key, given[key])} if key in given else given


def database_engine_options(options: Options, result_backend: str) -> dict[str, Any]:
    given = options.table("celery", "result_backend_sqlalchemy_engine_options")
    if not uses_psycopg(result_backend):
        return given
    # A pooler between here and PostgreSQL may give each transaction another connection.
    return {**given, "connect_args": {"prepare_threshold": None, **given.get("connect_args", {})}}


def uses_psycopg(result_backend: str) -> bool:
    if not result_backend.startswith("db+"):
        return False
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        return bool(make_url(result_backend.removeprefix("db+")).get_driver_name() == "psycopg")
    except (ArgumentError, NoSuchModuleError):
        return False  # `check_kinds` says what is wrong


def broker_use_ssl(options: Options, broker_url: str) -> dict[str, Any]:
    if re.search(r"amqps?://", broker_url):
        prefix = ""
    elif re.search(r"rediss?://|sentinel://", broker_url):
        prefix = "ssl_"
    else:
        remedy = "set it to False, or use RabbitMQ or Redis"
        raise wrong("celery", "ssl_active", f"a broker of kind {scheme_of(broker_url)!r} takes no certificates", remedy)
    given: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED}
    if authority := options.text("celery", "ssl_cacert"):
        given["ca_certs"] = authority
    if options.yes_or_no("celery", "ssl_mutual_tls", default=True):
        for key, name in (("ssl_key", "keyfile"), ("ssl_cert", "certfile")):
            given[name] = options.text("celery", key)
            if not given[name]:
                raise wrong("celery", key, "is not set", "set it, or ssl_mutual_tls = False if clients show none")
    return {prefix + name: value for name, value in given.items()}


def celery_config_options(options: Options) -> dict[str, Any]:
    path = options.text("celery", "celery_config_options")
    if not path or path in DEFAULT_CONFIG_OPTIONS:
        return {}
    module, _, name = path.rpartition(".")
    remedy = "set the dotted path of a dict of Celery settings"
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise wrong("celery", "celery_config_options", f"{path!r} cannot be imported: {error}", remedy) from None
    if not isinstance(found, Mapping):
        raise wrong("celery", "celery_config_options", f"{path!r} is no dict", remedy)
    return dict(found)
