"""`celeriac worker`. The worker itself is in `celeriac.worker.start`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.options import connection_options, exit_on_bad_input, machine_options, resource_options
from celeriac.cli.path_completion import complete_file, complete_folder
from celeriac.cli.sinks import make_sinks
from celeriac.cli.web_server import check_web_libraries, listen_option, open_server
from celeriac.config.settings import Settings, read_settings
from celeriac.doctor.at_start import warn_at_start
from celeriac.errors import InvalidConfig
from celeriac.worker.health import WorkerHealth
from celeriac.worker.log import logger
from celeriac.worker.start import work

if TYPE_CHECKING:
    from celeriac.worker.consumer import Worker


@click.command(cls=SectionedCommand)
@connection_options
@click.option("--queues", metavar="NAMES", help='Queues to serve, separated by commas. [default: the queue "default"]')
@click.option("-c", "--concurrency", metavar="N", help="Number of commands at a time. [default: one per CPU]")
@resource_options
@machine_options
@click.option("--pool", metavar="KIND", help="threads, or prefork for Celery's child processes. [default: threads]")
@click.option(
    "--autoscale", metavar="MAX,MIN", help="Largest and smallest number of processes. Only with --pool prefork."
)
@click.option("--name", metavar="NAME", help="Name of the worker. [default: celeriac-PID]")
@click.option("--grace", metavar="SECONDS", help="Time for running commands to end after TERM. [default: 30]")
@click.option(
    "--idle-exit", metavar="SECONDS", help="End, as if drained, after SECONDS without a task. [default: stay]"
)
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    shell_complete=complete_folder,
    help="Keep the output of each task in DIR/KEY.out and .err, and its artifacts in DIR/KEY.artifacts.",
)
@click.option(
    "--ssh",
    metavar="FILE",
    shell_complete=complete_file,
    help="Run a worker on each host of FILE instead, over ssh: [user@]host [slots=N] [python=PATH] a line.",
)
@click.option("--stdin", "from_stdin", is_flag=True, hidden=True)
@listen_option
@click.option("--log-format", metavar="KIND", help="text or json. [default: text]")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error. [default: info]")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only.")
@exit_on_bad_input
def worker(
    config: str | None, quiet: bool, listen: str | None, ssh: str | None, from_stdin: bool, **options: Any
) -> None:
    """Run commands from a broker on this machine.

    TERM or Ctrl-C once: take nothing more, and stop when the running commands have ended. After --grace seconds the
    worker ends commands that still run, and gives their tasks back to the broker. Twice: stop at once.

    With --ssh: the workers get these settings, and end with this process. A worker that fails is started again.

    Every option is a setting, too: see `celeriac config`.
    """
    if quiet:
        options["log_level"] = "error"
    beside: Callable[[Worker], AbstractContextManager[object]] = nullcontext
    if from_stdin:
        from celeriac.ssh.orders import read_options

        options, beside = read_options(), follow_stdin
    settings = read_settings(options, config=config)
    if ssh is not None:
        from celeriac.cli.ssh_workers import run_on_hosts

        if listen is not None:
            raise InvalidConfig("--ssh", "it takes no --listen", "leave one of them out")
        run_on_hosts(ssh, settings)
        return
    if listen is not None:
        check_web_libraries()
        beside = partial(serve_probes, settings, listen)
    check = partial(warn_at_start, settings, settings.connection, logger.warning)
    work(settings, make_sinks(settings), check=check, beside=beside)


@contextmanager
def follow_stdin(worker: Worker) -> Iterator[None]:
    """Obey the orders on standard input until the end of the block."""
    from celeriac.ssh.orders import follow

    worker.on_pool_started = follow  # children must not be forked beside its thread
    yield


@contextmanager
def serve_probes(settings: Settings, listen: str, worker: Worker) -> Iterator[None]:
    """Serve the health and the metrics of a worker until the end of the block. Raises `InvalidConfig`."""
    from celeriac.web.health import HealthCheck  # imports the libraries of the web server

    health = WorkerHealth(worker)
    checks = (
        HealthCheck("lease", health.lease_problem),
        HealthCheck("broker", health.broker_problem),
        HealthCheck("worker", health.stop_problem, only_ready=True),
    )
    with open_server(
        settings, listen, checks=checks, telemetry=worker.parts.measures.telemetry, is_started=False
    ) as server:
        worker.on_pool_started = server.start  # children must not be forked beside its threads
        yield
