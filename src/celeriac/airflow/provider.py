"""What Airflow is told of this package: its executor, its commands and its options.

Read in every process of Airflow, so it imports nothing but what finds installed packages. What belongs to Airflow's own
Celery provider is told only where that is not installed: two packages with one section, or with commands of one name,
keep Airflow from starting.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

OTHER_PROVIDER = "apache-airflow-providers-celery"

Option = tuple[str, str, str | None, str]
"""Name, type, default, what it says."""

OURS: list[Option] = [
    (
        "broker_priority",
        "boolean",
        "False",
        (
            "Carry priority_weight into the broker, so that urgent tasks overtake others that were sent before."
            " Scheduler and workers must agree, and queues of RabbitMQ that exist must be deleted first."
        ),
    ),
    (
        "delete_results",
        "boolean",
        "True",
        "Delete the stored result of a workload once the scheduler has seen it. Celery's result_expires does the rest.",
    ),
    (
        "signing_key",
        "string",
        None,
        (
            "Signs workloads. A worker of Celeriac's that has it runs nothing that was not signed with it. Several with"
            " commas between them: the first signs, all verify."
        ),
    ),
    (
        "worker_grace",
        "float",
        None,
        "Seconds that running tasks are given after a TERM, until they are ended. Unset: as long as they take.",
    ),
]

CELERY: list[Option] = [
    ("celery_app_name", "string", "airflow.providers.celery.executors.celery_executor", "The name of the Celery app."),
    ("broker_url", "string", "redis://redis:6379/0", "Where messages go: Redis or RabbitMQ."),
    (
        "result_backend",
        "string",
        None,
        "Where workers store how a workload ended. Unset: in Airflow's database.",
    ),
    (
        "result_backend_sqlalchemy_engine_options",
        "string",
        "",
        "Options of SQLAlchemy's create_engine for a result backend in a database, as a JSON object.",
    ),
    ("worker_concurrency", "integer", "16", "How many workloads a worker runs at once."),
    ("worker_autoscale", "string", None, "The most and the fewest processes of a worker, such as 16,4."),
    ("worker_prefetch_multiplier", "integer", "1", "Messages that a worker takes for each of its processes."),
    ("worker_enable_remote_control", "boolean", "True", "Whether workers can be asked and told things."),
    ("worker_umask", "string", None, "The octal umask of a worker that runs as a daemon."),
    ("pool", "string", "prefork", "How a worker runs several workloads. Only prefork is possible."),
    ("operation_timeout", "float", "1.0", "Seconds that one operation on broker or result backend may take."),
    ("task_acks_late", "boolean", "True", "Acknowledge a message when its workload has ended, not when it begins."),
    ("task_track_started", "boolean", "True", "Store that a workload has begun."),
    ("task_publish_max_retries", "integer", "3", "Of no effect: while the broker is away, workloads wait."),
    ("json_logs", "boolean", None, "Whether a worker logs as JSON. Unset: as [logging] json_logs says."),
    (
        "task_logs_to_stdout",
        "boolean",
        None,
        "Whether a worker shows what tasks log. Unset: as [logging] task_logs_to_stdout says.",
    ),
    ("mp_start_method", "string", None, "How a worker starts its log server: fork, forkserver or spawn."),
    ("mp_forkserver_preload", "string", None, "Modules for a forkserver to import first."),
    ("ssl_active", "boolean", "False", "Whether the broker is reached over TLS."),
    ("ssl_mutual_tls", "boolean", "True", "Whether a client shows a certificate: ssl_cert and ssl_key."),
    ("ssl_key", "string", "", "The file of the client's key."),
    ("ssl_cert", "string", "", "The file of the client's certificate."),
    ("ssl_cacert", "string", "", "The file of the certificates to trust. Unset: those of the system."),
    ("extra_celery_config", "string", "{{}}", "More settings of Celery, as a JSON object."),
    ("celery_config_options", "string", "", "The dotted path of a dict of Celery settings, which go over all others."),
]

SENSITIVE = {"broker_url", "result_backend", "sentinel_kwargs", "signing_key"}

BROKER_TRANSPORT: list[Option] = [
    ("visibility_timeout", "string", None, "Seconds until Redis gives a message to another worker. Unset: a day."),
    ("sentinel_kwargs", "string", None, "Options of Sentinel's own client, as a JSON object."),
]

RESULT_BACKEND_TRANSPORT: list[Option] = [
    ("master_name", "string", None, "What Sentinel calls the Redis of the results."),
    ("sentinel_kwargs", "string", None, "Options of Sentinel's own client, as a JSON object."),
]


def get_provider_info() -> dict[str, Any]:
    config = {"celeriac": section("The executor celeriac.airflow.CeleryExecutor and its workers.", OURS)}
    if not is_other_provider_installed():
        config |= {
            "celery": section("Broker, result backend and workers.", CELERY),
            "celery_broker_transport_options": section("What Celery hands to the broker's client.", BROKER_TRANSPORT),
            "celery_result_backend_transport_options": section(
                "What Celery hands to the result backend's client.", RESULT_BACKEND_TRANSPORT
            ),
        }
    return {
        "package-name": "celeriac",
        "name": "Celeriac",
        "description": "A CeleryExecutor that follows every workload to its end.",
        "executors": ["celeriac.airflow.CeleryExecutor"],
        "cli": ["celeriac.airflow.cli_definition.get_cli_commands"],
        "config": config,
    }


def is_other_provider_installed() -> bool:
    try:
        distribution(OTHER_PROVIDER)
    except PackageNotFoundError:
        return False
    return True


def section(description: str, options: list[Option]) -> dict[str, Any]:
    return {
        "description": description,
        "options": {
            name: {
                "description": says,
                "version_added": None,
                "type": kind,
                "example": None,
                "default": default,
                **({"sensitive": True} if name in SENSITIVE else {}),
            }
            for name, kind, default, says in options
        },
    }
