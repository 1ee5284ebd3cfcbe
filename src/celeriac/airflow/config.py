"""The Celery app and the executor's settings, from Airflow's configuration, for the scheduler and for the worker.

[celery], [celery_broker_transport_options], … ─► celery_settings ─► make_app ─► Celery app
[celery], [celeriac]                           ─► executor_config ─► Config
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from celery import Celery

from celeriac.airflow.option_table import BROKER_TRANSPORT, RESULT_BACKEND_TRANSPORT
from celeriac.airflow.options import InvalidAirflowConfig, Options, invalid_option, parse_json_object
from celeriac.broker.app import backend_settings, invalid_config_for, priority_settings
from celeriac.config.executor_config import Config
from celeriac.config.postgres import engine_options
from celeriac.config.settings import REDIS_SCHEMES, check_broker_list, scheme_of
from celeriac.config.signing import SigningKeys
from celeriac.errors import InvalidConfig

DEFAULT_CONFIG_OPTIONS = {
    "airflow.providers.celery.executors.default_celery.DEFAULT_CELERY_CONFIG",
    "airflow.config_templates.default_celery.DEFAULT_CELERY_CONFIG",
}
"""The defaults of `celery_config_options`. They count as unset: only Airflow's own provider has these modules."""

VISIBILITY_TIMEOUT = 24 * 3600  # seconds
SCHEMES_WITH_VISIBILITY_TIMEOUT = ("redis", "rediss", "sqs", "sentinel")
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
PUBLISH_DEADLINE = 7 * 24 * 3600.0  # seconds: long, because Airflow has its own timeout for queued tasks
UNLIMITED_SLOTS = 2**31 - 1  # for [core] parallelism = 0

URL_SETTINGS = ("broker_url", "result_backend")


def executor_config(conf: Any, parallelism: int) -> Config:
    """Return the settings of Celeriac's executor. Raises `InvalidAirflowConfig`."""
    options = Options(conf)
    return Config(
        parallelism=parallelism or UNLIMITED_SLOTS,
        operation_timeout=options.seconds("celery", "operation_timeout"),
        publish_deadline=PUBLISH_DEADLINE,
        delete_results=options.boolean("celeriac", "delete_results"),
        result_trigger=options.boolean("celeriac", "result_trigger"),
    )


# — messages —


def signing_keys(conf: Any) -> SigningKeys | None:
    """Return the keys of [celeriac] signing_key, if it is set. Raises `InvalidAirflowConfig`, which shows no key."""
    with as_airflow_error("[celeriac] signing_key"):
        return SigningKeys.of(Options(conf).get("celeriac", "signing_key") or None)


def signed_content(task_id: str, workload: str) -> dict[str, Any]:
    """Return the content that a signature covers."""
    return {"id": task_id, "workload": workload}


def shown_arguments(workload: Any) -> str:
    """Return the arguments of a message as logs and events show them: without the token."""
    return f"({type(workload).__name__},)"


# — the app —


def make_app(conf: Any, *, team_name: str | None, operation_timeout: float, for_worker: bool = False) -> Celery:
    """Return the Celery app of a team, or the app without teams.

    `operation_timeout`, in seconds, bounds one operation on the result backend. A worker's app detects dead
    connections, and retries to store a result until it is stored. Raises `InvalidAirflowConfig`.
    """
    options = Options(conf)
    configured = celery_settings(conf)
    defaults = backend_settings(operation_timeout)
    if not str(configured["result_backend"]).startswith("db+"):
        del defaults["database_engine_options"]
    if for_worker:
        from celeriac.worker.app import connection_options, durable_settings

        defaults |= durable_settings()
        defaults["broker_transport_options"] = connection_options(configured["broker_url"])
    settings = merge_settings(defaults, configured)
    if has_ten_priorities(options):
        settings = priority_settings(settings["broker_url"], settings)
    name = options.text("celery", "celery_app_name")
    app = Celery(
        f"{name}_{team_name}" if team_name else name,
        config_source=settings,
        set_as_current=False,
    )
    check_urls(app)
    if for_worker:
        from celeriac.worker.app import make_results_durable

        make_results_durable(app)
    return app


def carries_priority(app: Celery, conf: Any) -> bool:
    """Return whether messages have priorities. Raises `InvalidAirflowConfig`.

    Without any setting, each worker of Celery takes messages from four lists of a queue on Redis, the urgent ones
    first. On RabbitMQ, a queue with priorities could not be used by a worker that does not ask for them.
    """
    options = Options(conf)
    return has_ten_priorities(options) or (is_automatic(options) and scheme_of(app.conf.broker_url) in REDIS_SCHEMES)


def has_ten_priorities(options: Options) -> bool:
    return not is_automatic(options) and options.boolean("celeriac", "broker_priority")


def is_automatic(options: Options) -> bool:
    return options.text("celeriac", "broker_priority").strip().lower() == "auto"


def merge_settings(defaults: Mapping[str, Any], configured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults overridden by the configured settings. Settings that are dicts are merged key by key."""
    merged = {**defaults, **configured}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(merged[name], dict):
            merged[name] = {**default, **merged[name]}
    return merged


def check_urls(app: Celery) -> None:
    """Raise `InvalidAirflowConfig` for a URL that Celery cannot use, or whose client is not installed."""
    with as_airflow_error("[celery] broker_url"):
        check_broker_list(app.conf.broker_url)
    with (
        as_airflow_error(),
        invalid_config_for("[celery] broker_url", app.conf.broker_url, "set the URL of Redis, Valkey or RabbitMQ"),
    ):
        _ = app.connection_for_write().transport
    with (
        as_airflow_error(),
        invalid_config_for(
            "[celery] result_backend",
            app.conf.result_backend,
            "set the URL of Redis, Valkey, or a database, such as db+postgresql+psycopg://…",
        ),
    ):
        _ = app.backend


@contextmanager
def as_airflow_error(setting: str | None = None) -> Iterator[None]:
    """Raise `InvalidAirflowConfig` for an `InvalidConfig`, with Airflow's name of the setting."""
    try:
        yield
    except InvalidConfig as error:
        raise InvalidAirflowConfig(setting or error.setting, error.problem, error.remedy) from None


# — Celery's settings —


def celery_settings(conf: Any) -> dict[str, Any]:
    """Return the Celery settings of Airflow's options, without Celeriac's own. Raises `InvalidAirflowConfig`."""
    options = Options(conf)
    broker_url = options.text("celery", "broker_url")
    result_backend = result_backend_url(options)
    default_queue = options.text("operators", "default_queue")
    settings: dict[str, Any] = {
        "accept_content": ["json"],
        "event_serializer": "json",
        "worker_prefetch_multiplier": options.integer("celery", "worker_prefetch_multiplier"),
        "task_acks_late": options.boolean("celery", "task_acks_late"),
        "task_default_queue": default_queue,
        "task_default_exchange": default_queue,
        "task_track_started": options.boolean("celery", "task_track_started"),
        "broker_url": broker_url,
        "broker_transport_options": broker_transport_options(options, broker_url),
        "broker_connection_retry_on_startup": options.boolean("celery", "broker_connection_retry_on_startup"),
        "result_backend": result_backend,
        "result_backend_transport_options": result_backend_transport_options(options),
        "database_engine_options": database_engine_options(options, result_backend),
        "worker_concurrency": options.integer("celery", "worker_concurrency"),
        "worker_enable_remote_control": options.boolean("celery", "worker_enable_remote_control"),
        "worker_redirect_stdouts": False,
        "worker_hijack_root_logger": False,
        **options.json_object("celery", "extra_celery_config"),
    }
    if options.boolean("celery", "ssl_active"):
        settings["broker_use_ssl"] = broker_use_ssl(options, broker_url)
    overrides = celery_config_options(options)
    if options.team_name is not None:  # the dict may hold the URLs of all teams
        overrides = {name: value for name, value in overrides.items() if name not in URL_SETTINGS}
    return {**settings, **overrides}


def result_backend_url(options: Options) -> str:
    if url := options.get("celery", "result_backend"):
        return url
    if options.team_name is not None:
        variable = f"AIRFLOW__{options.team_name.upper()}___CELERY__RESULT_BACKEND"
        problem = f"team {options.team_name!r} has no result backend of its own"
        raise invalid_option("celery", "result_backend", problem, f"set {variable}")
    database = options.text("database", "sql_alchemy_conn")
    driver = "psycopg" if has_psycopg_dialect() else "psycopg2"
    return "db+" + database.replace("postgresql://", f"postgresql+{driver}://", 1)


def has_psycopg_dialect() -> bool:
    return int(version("sqlalchemy").partition(".")[0]) >= 2 and find_spec("psycopg") is not None


def broker_transport_options(options: Options, broker_url: str) -> dict[str, Any]:
    configured = options.section(BROKER_TRANSPORT)
    if scheme_of(broker_url) in SCHEMES_WITH_VISIBILITY_TIMEOUT:
        configured.setdefault("visibility_timeout", VISIBILITY_TIMEOUT)
    return with_parsed_json(BROKER_TRANSPORT, configured, JSON_TRANSPORT_OPTIONS)


def result_backend_transport_options(options: Options) -> dict[str, Any]:
    configured = options.section(RESULT_BACKEND_TRANSPORT)
    return with_parsed_json(RESULT_BACKEND_TRANSPORT, configured, ("sentinel_kwargs",))


def with_parsed_json(section: str, configured: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the options with these keys parsed as JSON objects. Raises `InvalidAirflowConfig`."""
    parsed = {key: parse_json_object(section, key, configured[key]) for key in keys if key in configured}
    return {**configured, **parsed}


def database_engine_options(options: Options, result_backend: str) -> dict[str, Any]:
    configured = options.json_object("celery", "result_backend_sqlalchemy_engine_options")
    return engine_options(result_backend, configured)


def broker_use_ssl(options: Options, broker_url: str) -> dict[str, Any]:
    if re.search(r"amqps?://", broker_url):
        prefix = ""
    elif re.search(r"rediss?://|sentinel://", broker_url):
        prefix = "ssl_"
    else:
        problem = f"a broker of kind {scheme_of(broker_url)!r} cannot use certificates"
        raise invalid_option("celery", "ssl_active", problem, "set it to False, or use RabbitMQ or Redis")
    settings: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED}
    if authority := options.text("celery", "ssl_cacert"):
        settings["ca_certs"] = authority
    if options.boolean("celery", "ssl_mutual_tls"):
        for key, name in (("ssl_key", "keyfile"), ("ssl_cert", "certfile")):
            settings[name] = options.text("celery", key)
            if not settings[name]:
                remedy = "set it, or set ssl_mutual_tls = False if clients present no certificate"
                raise invalid_option("celery", key, "is not set", remedy)
    return {prefix + name: value for name, value in settings.items()}


def celery_config_options(options: Options) -> dict[str, Any]:
    """Return the user's dict of Celery settings; {} if none is configured. Raises `InvalidAirflowConfig`."""
    path = options.text("celery", "celery_config_options")
    if not path or path in DEFAULT_CONFIG_OPTIONS:
        return {}
    module, _, name = path.rpartition(".")
    remedy = "set the dotted path of a dict of Celery settings"
    try:
        settings = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        problem = f"{path!r} cannot be imported: {error}"
        raise invalid_option("celery", "celery_config_options", problem, remedy) from None
    if not isinstance(settings, Mapping):
        raise invalid_option("celery", "celery_config_options", f"{path!r} is not a dict", remedy)
    return dict(settings)
