"""`airflow celeriac …`: the commands and their options. The module of a command is imported when the command runs.

Names, short options and defaults are those of `airflow celery`. Defaults from the configuration are filled in when the
command runs, because this module is imported by every command of Airflow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.cli.cli_config import (
    ARG_DAEMON,
    ARG_LOG_FILE,
    ARG_OUTPUT,
    ARG_PID,
    ARG_SKIP_SERVE_LOGS,
    ARG_STDERR,
    ARG_STDOUT,
    ARG_VERBOSE,
    ActionCommand,
    Arg,
    GroupCommand,
    lazy_load_command,
)

from celeriac.airflow.cli_output import printing_command
from celeriac.airflow.provider import is_upstream_provider_installed

QUEUES = Arg(
    ("-q", "--queues"), help="Queues to consume, separated by commas. Default: default_queue of the section operators"
)
CONCURRENCY = Arg(
    ("-c", "--concurrency"),
    type=int,
    help="Number of workloads at the same time. Default: worker_concurrency of the section celery",
)
HOSTNAME = Arg(("-H", "--celery-hostname"), help="Name of the worker, if this machine runs several")
TEAM = Arg(("-t", "--team"), help="Team of the worker (Airflow 3.2 and later)")
UMASK = Arg(("-u", "--umask"), help="Octal umask of a daemon. Default: worker_umask of the section celery")
AUTOSCALE = Arg(("-a", "--autoscale"), help="Maximum and minimum number of processes, such as 16,4")
WITHOUT_MINGLE = Arg(("--without-mingle",), action="store_true", help="Do not synchronize with other workers at start")
WITHOUT_GOSSIP = Arg(("--without-gossip",), action="store_true", help="Do not subscribe to events of other workers")
CHECKED = Arg(("worker",), nargs="?", metavar="WORKER", help="Name of the worker. Default: the one of this host")

FLOWER_HOSTNAME = Arg(("-H", "--hostname"), help="Address to listen on. Default: flower_host of the section celery")
FLOWER_PORT = Arg(("-p", "--port"), type=int, help="Port to listen on. Default: flower_port of the section celery")
FLOWER_CONF = Arg(("-c", "--flower-conf"), help="Configuration file of Flower")
FLOWER_URL_PREFIX = Arg(
    ("-u", "--url-prefix"), help="Prefix of Flower's URLs. Default: flower_url_prefix of the section celery"
)
FLOWER_BASIC_AUTH = Arg(
    ("-A", "--basic-auth"),
    help="Users of Flower, as user:password,user:password. Default: flower_basic_auth of the section celery",
)
BROKER_API = Arg(("-a", "--broker-api"), help="URL of the management API of RabbitMQ")

WORKER = Arg(("worker",), metavar="WORKER", help="Full name of the worker, such as celery@HOST; `status` lists them")
DAG_ID = Arg(("dag_id",), metavar="DAG_ID")
TASK_ID = Arg(("task_id",), metavar="TASK_ID")
RUN_ID = Arg(("run_id",), metavar="RUN_ID")
MAP_INDEX = Arg(("--map-index",), type=int, default=-1, help="Index of a mapped task")
FULL_HOSTNAME = Arg(("-H", "--celery-hostname"), required=True, help="Full name of the worker, such as celery@HOST")
CHANGED_QUEUES = Arg(("-q", "--queues"), required=True, help="Names of queues, separated by commas")
YES = Arg(("-y", "--yes"), action="store_true", help="Do not ask for a confirmation")


def remote(name: str) -> Callable[..., Any]:
    command: Callable[..., Any] = lazy_load_command(f"celeriac.airflow.remote_commands.{name}")
    return command


COMMANDS = (
    ActionCommand(
        name="worker",
        help="Run workloads on this machine",
        func=lazy_load_command("celeriac.airflow.cli_commands.worker"),
        args=(
            QUEUES,
            CONCURRENCY,
            HOSTNAME,
            TEAM,
            ARG_PID,
            ARG_DAEMON,
            UMASK,
            ARG_STDOUT,
            ARG_STDERR,
            ARG_LOG_FILE,
            AUTOSCALE,
            ARG_SKIP_SERVE_LOGS,
            WITHOUT_MINGLE,
            WITHOUT_GOSSIP,
            ARG_VERBOSE,
        ),
    ),
    ActionCommand(
        name="flower",
        help="Run Flower, a web page for Celery, if it is installed",
        func=lazy_load_command("celeriac.airflow.cli_commands.flower"),
        args=(
            FLOWER_HOSTNAME,
            FLOWER_PORT,
            FLOWER_CONF,
            FLOWER_URL_PREFIX,
            FLOWER_BASIC_AUTH,
            BROKER_API,
            TEAM,
            ARG_PID,
            ARG_DAEMON,
            ARG_STDOUT,
            ARG_STDERR,
            ARG_LOG_FILE,
            ARG_VERBOSE,
        ),
    ),
    ActionCommand(
        name="stop",
        help="Stop a worker that runs as a daemon, when its running workloads have ended",
        func=lazy_load_command("celeriac.airflow.cli_commands.stop"),
        args=(ARG_PID, ARG_VERBOSE),
    ),
    ActionCommand(
        name="status",
        help="Show workers, their running workloads, and how many messages wait in each queue",
        func=printing_command("celeriac.airflow.cli_commands.status"),
        args=(TEAM, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="list-workers",
        help="List the workers that reply, and their queues",
        func=printing_command("celeriac.airflow.remote_commands.list_workers"),
        args=(ARG_OUTPUT, TEAM),
    ),
    ActionCommand(
        name="drain",
        help="Have a worker take no more workloads, finish the running ones, and exit",
        func=remote("drain"),
        args=(WORKER, TEAM, ARG_VERBOSE),
    ),
    ActionCommand(
        name="explain",
        help="Show why a task instance waits, and what became of it",
        func=printing_command("celeriac.airflow.cli_explain.explain"),
        args=(DAG_ID, TASK_ID, RUN_ID, MAP_INDEX, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="check",
        help="Check that a worker lives, for the liveness probe of a container",
        description="The exit status is 1 if a restart would help: the worker has not renewed its lease. It is 0 if the"
        " worker lives or drains, and if that is unknown, because the result backend is unavailable.",
        func=printing_command("celeriac.airflow.cli_commands.check"),
        args=(CHECKED, TEAM, ARG_VERBOSE),
    ),
    ActionCommand(
        name="shutdown-worker",
        help="The same as drain, with the options of Airflow's own command",
        func=remote("shutdown_worker"),
        args=(FULL_HOSTNAME, TEAM),
    ),
    ActionCommand(
        name="shutdown-all-workers",
        help="Have all workers of the broker finish their running workloads, and exit",
        func=remote("shutdown_all_workers"),
        args=(YES, TEAM),
    ),
    ActionCommand(
        name="add-queue",
        help="Have a worker consume from more queues",
        func=remote("add_queue"),
        args=(CHANGED_QUEUES, FULL_HOSTNAME, TEAM),
    ),
    ActionCommand(
        name="remove-queue",
        help="Have a worker take no more workloads of some queues",
        func=remote("remove_queue"),
        args=(CHANGED_QUEUES, FULL_HOSTNAME, TEAM),
    ),
    ActionCommand(
        name="remove-all-queues",
        help="Have a worker take no more workloads, and go on running",
        func=remote("remove_all_queues"),
        args=(FULL_HOSTNAME, TEAM),
    ),
    ActionCommand(
        name="doctor",
        help="Find what is wrong with this machine, Airflow's components, the servers and the workers",
        func=printing_command("celeriac.airflow.cli_commands.doctor"),
        args=(TEAM, ARG_OUTPUT, ARG_VERBOSE),
    ),
)


def get_cli_commands() -> list[GroupCommand]:
    """Return the command group `celeriac`; also `celery`, unless Airflow's own Celery provider has that group."""
    names = ["celeriac"] if is_upstream_provider_installed() else ["celeriac", "celery"]
    return [
        GroupCommand(
            name=name,
            help="Workers of the CeleryExecutor",
            description="Start, watch and stop the workers of celeriac.airflow.CeleryExecutor.",
            subcommands=COMMANDS,
        )
        for name in names
    ]
