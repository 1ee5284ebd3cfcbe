"""`airflow celeriac …`: names and options. What the commands do is imported when one is run."""

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

from celeriac.airflow.provider import is_other_provider_installed

QUEUES = Arg(
    ("-q", "--queues"), help="Queues to serve, with commas between them. Default: that of the section operators"
)
CONCURRENCY = Arg(
    ("-c", "--concurrency"), type=int, help="Workloads at a time. Default: worker_concurrency of the section celery"
)
HOSTNAME = Arg(("-H", "--celery-hostname"), help="What the worker is called, if this machine has several")
TEAM = Arg(("-t", "--team"), help="The team it works for (Airflow 3.2 and later)")
UMASK = Arg(("-u", "--umask"), help="The octal umask of a daemon. Default: worker_umask of the section celery")
AUTOSCALE = Arg(("-a", "--autoscale"), help="The most and the fewest processes, such as 16,4")
WITHOUT_MINGLE = Arg(("--without-mingle",), action="store_true", help="Ask other workers nothing at start")
WITHOUT_GOSSIP = Arg(("--without-gossip",), action="store_true", help="Do not listen to other workers")
WORKER = Arg(("worker",), metavar="WORKER", help="Its full name, such as celery@HOST: see status")

COMMANDS = (
    ActionCommand(
        name="worker",
        help="Run workloads on this machine",
        func=lazy_load_command("celeriac.airflow.worker.worker"),
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
        help="Have a worker that runs as a daemon finish what it runs, and go",
        func=lazy_load_command("celeriac.airflow.cli_commands.stop"),
        args=(ARG_PID, ARG_VERBOSE),
    ),
    ActionCommand(
        name="status",
        help="Show workers, what they run, and how much waits in each queue",
        func=lazy_load_command("celeriac.airflow.cli_commands.status"),
        args=(TEAM, ARG_OUTPUT, ARG_VERBOSE),
    ),
    ActionCommand(
        name="drain",
        help="Have a worker take nothing more, finish what it runs, and go",
        func=lazy_load_command("celeriac.airflow.cli_commands.drain"),
        args=(WORKER, TEAM, ARG_VERBOSE),
    ),
)


def get_cli_commands() -> list[GroupCommand]:
    """The group `celeriac`, and `celery` where nobody else has that."""
    names = ["celeriac"] if is_other_provider_installed() else ["celeriac", "celery"]
    return [
        GroupCommand(
            name=name,
            help="Workers of the CeleryExecutor",
            description="Start, watch and stop the workers of celeriac.airflow.CeleryExecutor.",
            subcommands=COMMANDS,
        )
        for name in names
    ]
