"""The settings of one worker: command line options and Airflow's configuration in, a frozen plan out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery.utils.nodenames import default_nodename, host_format

from celeriac.airflow.api_server_policy import ApiServerPolicy
from celeriac.airflow.config import signing_keys
from celeriac.airflow.options import Options, invalid_option
from celeriac.airflow.worker_versions import load_conf, repeats_heartbeats
from celeriac.config.signing import SigningKeys

MAX_SILENCE = 0.8
"""Share of [scheduler] task_instance_heartbeat_timeout: a task must have ended before the scheduler starts it again."""

API_RETRY_WAIT_MAX = 5.0  # seconds, in place of Airflow's 90


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    conf: Any
    """The configuration of Airflow or of the team."""

    team: str | None
    hostname: str
    """Celery's name of the worker, such as celery@host."""

    queues: list[str]
    concurrency: int
    autoscale: tuple[int, int] | None
    """Maximum and minimum number of processes."""

    without_mingle: bool
    without_gossip: bool
    log_level: str
    grace: float
    """Seconds from TERM until the worker ends the workloads that still run."""

    cleanup_time: float
    """Seconds that an ended task has for its `on_kill`."""

    operation_timeout: float
    """Seconds that one operation on broker or result backend may take."""

    api_server: ApiServerPolicy
    """How long requests to Airflow's API server are repeated."""

    keys: SigningKeys | None
    max_message_size: int
    """Bytes: the worker refuses a workload with a larger message."""

    shows_task_logs: bool
    """Whether the logs of tasks go to standard output, too."""

    serves_logs: bool
    bundle_interval: float
    """Seconds between two removals of stale DAG bundles; 0 for none."""


def plan_worker(args: Any, conf: Any) -> WorkerPlan:
    """Return the plan for the parsed options of `airflow celeriac worker`. Raises `InvalidAirflowConfig`."""
    options = Options(conf)
    check_pool(options)
    level = options.text("logging", "celery_logging_level") or options.text("logging", "logging_level")
    return WorkerPlan(
        conf=conf,
        team=args.team,
        hostname=host_format(default_nodename(args.celery_hostname)),
        queues=split_queues(args.queues or options.text("operators", "default_queue")),
        concurrency=args.concurrency or options.integer("celery", "worker_concurrency"),
        autoscale=parse_autoscale(args.autoscale or options.text("celery", "worker_autoscale")),
        without_mingle=args.without_mingle,
        without_gossip=args.without_gossip,
        log_level="DEBUG" if args.verbose else level.upper(),
        grace=options.seconds("celeriac", "worker_grace"),
        cleanup_time=options.seconds("core", "killed_task_cleanup_time"),
        operation_timeout=options.seconds("celery", "operation_timeout"),
        api_server=api_server_policy(options),
        keys=signing_keys(conf),
        max_message_size=options.integer("celeriac", "max_message_size"),
        shows_task_logs=celery_or_logging_flag(options, "task_logs_to_stdout"),
        serves_logs=not args.skip_serve_logs,
        bundle_interval=options.number("dag_processor", "stale_bundle_cleanup_interval"),
    )


def api_server_policy(options: Options) -> ApiServerPolicy:
    """Return how long requests are repeated. Options of Airflow that the user has set keep their meaning."""
    shared = Options(load_conf(None))  # these options are the same for all teams
    attempts = shared.integer("workers", "execution_api_retries")
    min_delay = shared.seconds("workers", "execution_api_retry_wait_min")
    max_delay = shared.seconds("workers", "execution_api_retry_wait_max")
    if not shared.is_changed("workers", "execution_api_retry_wait_max"):
        max_delay = API_RETRY_WAIT_MAX
    keeps_limit = shared.is_changed("workers", "max_failed_heartbeats", 30)  # since Airflow 3.4
    return ApiServerPolicy(
        patience=options.seconds("celeriac", "api_server_patience"),
        max_silence=MAX_SILENCE * shared.seconds("scheduler", "task_instance_heartbeat_timeout"),
        limits_heartbeats=not keeps_limit,
        heartbeat_attempts=attempts if keeps_limit and repeats_heartbeats() else 1,
        max_attempts=attempts if shared.is_changed("workers", "execution_api_retries") else None,
        min_delay=min_delay,
        max_delay=max(min_delay, max_delay),
    )


def check_pool(options: Options) -> None:
    pool = options.text("celery", "pool") or "prefork"
    if pool not in ("prefork", "processes"):
        problem = f"{pool!r} is not supported: Airflow's supervisor needs the main thread of a process"
        raise invalid_option("celery", "pool", problem, "set prefork")


def split_queues(text: str) -> list[str]:
    return [queue.strip() for queue in text.split(",") if queue.strip()]


def parse_autoscale(text: str) -> tuple[int, int] | None:
    """Return the maximum and the minimum; the text may have them in any order. A single number is the maximum."""
    if not text:
        return None
    try:
        minimum, maximum = sorted(int(number) for number in [*text.split(","), "0"][:2])
    except ValueError:
        maximum = minimum = -1
    if maximum < 1 or minimum < 0:
        raise invalid_option("celery", "worker_autoscale", f"{text!r} is not two numbers", "set for example 16,4")
    return maximum, minimum


def parse_umask(text: str) -> str:
    """Return the umask of a daemon, in octal digits."""
    try:
        umask = int(text, 8)
    except ValueError:
        umask = -1
    if not 0 <= umask <= 0o777:
        raise invalid_option(
            "celery", "worker_umask", f"{text!r} is not an octal number up to 777", "set for example 077"
        )
    return text


def celery_or_logging_flag(options: Options, key: str) -> bool:
    """Return a boolean of [celery]; if it is unset or "None", the option of the same name in [logging]."""
    value = options.text("celery", key)
    section = "celery" if value and value.lower() != "none" else "logging"
    return options.boolean(section, key)
