"""Every option that this package reads: section, key, type, default and description.

`provider` describes these sections to Airflow, and `options` takes the defaults from here: without its own Celery
provider, Airflow's core has only some of the defaults.

Every process of Airflow imports this module, so it imports only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass

SENSITIVE = frozenset({"broker_url", "flower_basic_auth", "result_backend", "sentinel_kwargs", "signing_key"})
"""Airflow masks the values of these options."""

BROKER_TRANSPORT = "celery_broker_transport_options"
RESULT_BACKEND_TRANSPORT = "celery_result_backend_transport_options"


@dataclass(frozen=True, slots=True)
class Option:
    key: str
    type: str
    """As Airflow names it: string, boolean, integer or float."""

    default: str | None
    """None for an option that is unset by default."""

    description: str


CELERIAC_OPTIONS = (
    Option(
        "api_server_patience",
        "float",
        "600.0",
        "Seconds that a worker waits for the API server before it starts a workload, and to report the end of a task."
        " Then it hands the workload back, and the task uses up no try.",
    ),
    Option(
        "broker_priority",
        "string",
        "auto",
        "Carry priority_weight into the broker, so that urgent tasks overtake tasks that were sent before."
        " With auto, do so on Redis, in four levels that every worker of Celery knows. With True, have ten, also"
        " on RabbitMQ: scheduler and workers must agree, and existing queues of RabbitMQ must be deleted first.",
    ),
    Option(
        "delete_results",
        "boolean",
        "True",
        "Delete the stored result of a workload when the scheduler has read it."
        " Celery's result_expires deletes the others.",
    ),
    Option(
        "explain_channel",
        "boolean",
        "True",
        "Whether the scheduler says why a task waits, over the broker, to the page and to airflow celeriac explain.",
    ),
    Option(
        "explain_queued_after",
        "float",
        "60.0",
        "Seconds that a task instance is queued until the scheduler logs why, and again every ten minutes. 0: never.",
    ),
    Option(
        "max_message_size",
        "integer",
        "8388608",
        "Largest message that a Celeriac worker accepts, in bytes. It refuses a workload with a larger message.",
    ),
    Option(
        "result_trigger",
        "boolean",
        "True",
        "Whether the scheduler creates a trigger on celery_taskmeta in PostgreSQL, so that it sees results at once.",
    ),
    Option(
        "signing_key",
        "string",
        None,
        "Sign workloads with this key. A Celeriac worker that has the key runs only workloads signed with it."
        " Separate several keys with commas: the first one signs, all of them verify.",
    ),
    Option(
        "worker_grace",
        "float",
        None,
        "Seconds from TERM until the worker ends the tasks that still run. Unset: no limit.",
    ),
)

CELERY_OPTIONS = (
    Option(
        "celery_app_name", "string", "airflow.providers.celery.executors.celery_executor", "Name of the Celery app."
    ),
    Option("broker_url", "string", "redis://redis:6379/0", "URL of the broker: Redis, Valkey or RabbitMQ."),
    Option(
        "result_backend",
        "string",
        None,
        "URL of the result backend, where workers store how a workload ended. Unset: Airflow's database.",
    ),
    Option(
        "result_backend_sqlalchemy_engine_options",
        "string",
        "",
        "Options of SQLAlchemy's create_engine for a result backend in a database, as a JSON object.",
    ),
    Option("worker_concurrency", "integer", "16", "Number of workloads that a worker runs at the same time."),
    Option("worker_autoscale", "string", None, "Maximum and minimum number of processes of a worker, such as 16,4."),
    Option(
        "worker_prefetch_multiplier", "integer", "1", "Messages that a worker prefetches for each of its processes."
    ),
    Option(
        "worker_enable_remote_control", "boolean", "True", "Whether workers accept Celery's remote control commands."
    ),
    Option("worker_umask", "string", None, "Octal umask of a worker that runs as a daemon."),
    Option("pool", "string", "prefork", "Pool of a worker. Only prefork is supported."),
    Option("operation_timeout", "float", "1.0", "Timeout in seconds of one operation on broker or result backend."),
    Option(
        "task_acks_late",
        "boolean",
        "True",
        "Acknowledge a message when its workload has ended, not when the workload starts.",
    ),
    Option("task_track_started", "boolean", "True", "Store the state STARTED when a workload starts."),
    Option(
        "task_publish_max_retries",
        "integer",
        "3",
        "Has no effect: workloads stay queued while the broker is unavailable.",
    ),
    Option(
        "sync_parallelism",
        "integer",
        "0",
        "Has no effect: one connection reads what changed, without processes for it.",
    ),
    Option("flower_host", "string", "0.0.0.0", "Address that Flower listens on."),  # noqa: S104 - Airflow's default
    Option("flower_port", "integer", "5555", "Port that Flower listens on."),
    Option("flower_url_prefix", "string", "", "Prefix of Flower's URLs."),
    Option("flower_basic_auth", "string", "", "Users of Flower, as user:password, separated by commas."),
    Option(
        "json_logs", "boolean", None, "Whether a worker writes its log as JSON. Unset: as [logging] json_logs says."
    ),
    Option(
        "task_logs_to_stdout",
        "boolean",
        None,
        "Whether a worker writes the logs of tasks to its standard output."
        " Unset: as [logging] task_logs_to_stdout says.",
    ),
    Option(
        "mp_start_method",
        "string",
        None,
        "Start method of the worker's log server: fork, forkserver or spawn.",
    ),
    Option("mp_forkserver_preload", "string", None, "Modules that the forkserver imports first."),
    Option("ssl_active", "boolean", "False", "Whether connections to the broker use TLS."),
    Option("ssl_mutual_tls", "boolean", "True", "Whether clients present a certificate: ssl_key and ssl_cert."),
    Option("ssl_key", "string", "", "File of the client's private key."),
    Option("ssl_cert", "string", "", "File of the client's certificate."),
    Option("ssl_cacert", "string", "", "File of the certificates to trust. Unset: those of the system."),
    Option("extra_celery_config", "string", "{}", "More Celery settings, as a JSON object."),
    Option(
        "celery_config_options",
        "string",
        "",
        "Dotted path of a dict of Celery settings, which override all others.",
    ),
)

BROKER_TRANSPORT_OPTIONS = (
    Option(
        "visibility_timeout",
        "string",
        None,
        "Seconds until Redis delivers an unacknowledged message again. Unset: one day.",
    ),
    Option("sentinel_kwargs", "string", None, "Options of the client of Sentinel itself, as a JSON object."),
)

RESULT_BACKEND_TRANSPORT_OPTIONS = (
    Option("master_name", "string", None, "Name that Sentinel uses for the Redis of the result backend."),
    Option("sentinel_kwargs", "string", None, "Options of the client of Sentinel itself, as a JSON object."),
)

DEFAULTS: dict[tuple[str, str], str | None] = {
    ("api", "base_url"): "/",
    ("celery", "broker_connection_retry_on_startup"): "True",
    ("core", "killed_task_cleanup_time"): "60.0",
    ("dag_processor", "stale_bundle_cleanup_interval"): "1800",
    ("logging", "celery_stdout_stderr_separation"): "False",
    ("logging", "json_logs"): "False",
    ("logging", "logging_level"): "INFO",
    ("logging", "task_logs_to_stdout"): "False",
    ("operators", "default_queue"): "default",
    ("scheduler", "task_instance_heartbeat_timeout"): "300",
    ("workers", "execution_api_retries"): "5",
    ("workers", "execution_api_retry_wait_max"): "90.0",
    ("workers", "execution_api_retry_wait_min"): "1.0",
    ("workers", "max_failed_heartbeats"): "3",
    **{("celeriac", option.key): option.default for option in CELERIAC_OPTIONS},
    **{("celery", option.key): option.default for option in CELERY_OPTIONS},
}
"""The defaults by section and key. Of options in Airflow's own sections, only the defaults are needed here."""
