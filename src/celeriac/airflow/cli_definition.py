"""`airflow celeriac …`: the commands and their options. `cli_commands` is imported when one of them runs."""

from __future__ import annotations

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
WORKER = Arg(("worker",), metavar="WORKER", help="Full name of the worker, such as celery@HOST; `status` lists them")
DAG_ID = Arg(("dag_id",), metavar="DAG_ID")
TASK_ID = Arg(("task_id",), metavar="TASK_ID")
RUN_ID = Arg(("run_id",), metavar="RUN_ID")
MAP_INDEX = Arg(("--map-index",), type=int, default=-1, help="Index of a mapped task")

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
        name="stop",
        help="Stop a worker that runs as a daemon, when its running workloads have ended",
        func=lazy_load_command("celeriac.airflow.cli_commands.stop"),
        args=(ARG_PID, ARG_VERBOSE),
    ),
    ActionCommand(
        name="status",
        help="Show workers, their running workloads, and how many messages wait in each queue",
        func=lazy_load_command("celeriac.airflow.cli_commands.status"),
        args=(TEAM, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="drain",
        help="Have a worker take no more workloads, finish the running ones, and exit",
        func=lazy_load_command("celeriac.airflow.cli_commands.drain"),
        args=(WORKER, TEAM, ARG_VERBOSE),
    ),
    ActionCommand(
        name="explain",
        help="Show why a task instance waits, and what became of it",
        func=lazy_load_command("celeriac.airflow.cli_explain.explain"),
        args=(DAG_ID, TASK_ID, RUN_ID, MAP_INDEX, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="check",
        help="Check that a worker lives, for the liveness probe of a container",
        description="The exit status is 1 if a restart would help: the worker has not renewed its lease. It is 0 if the"
        " worker lives or drains, and if that is unknown, because the result backend is unavailable.",
        func=lazy_load_command("celeriac.airflow.cli_commands.check"),
        args=(CHECKED, TEAM, ARG_VERBOSE),
    ),
    ActionCommand(
        name="doctor",
        help="Find what is wrong with this machine, Airflow's components, the servers and the workers",
        func=lazy_load_command("celeriac.airflow.cli_commands.doctor"),
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
