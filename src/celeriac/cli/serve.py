"""`celeriac serve`. The service itself is in `celeriac.runs.service`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from celeriac.cli.cluster import cluster_for
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.job_problems import exit_on_bad_jobs
from celeriac.cli.ledger_options import open_ledger, open_when_it_serves
from celeriac.cli.options import (
    connection_options,
    delay_option,
    exit_on_bad_input,
    limit_options,
    local_run_option,
    machine_options,
    parallelism_option,
    resource_options,
)
from celeriac.cli.path_completion import complete_folder
from celeriac.cli.sinks import make_sinks
from celeriac.cli.url_options import url_option
from celeriac.cli.web_server import check_web_libraries, listen_option, open_server
from celeriac.config.masking import masked
from celeriac.config.settings import Connection, Settings, read_settings
from celeriac.doctor.at_start import warn_at_start
from celeriac.doctor.ledger import file_subjects
from celeriac.errors import BackendUnavailable, BrokerUnavailable, InvalidConfig
from celeriac.ledger.inputs import stored_folder
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.transactions import data_folder
from celeriac.runs.kept_output import check_output_can_come
from celeriac.runs.launch import config_of, connection_of
from celeriac.runs.options import LIMITS
from celeriac.runs.schedule import read_schedules
from celeriac.runs.service import Service, log_event
from celeriac.server_errors import ServerProblem, problem_of
from celeriac.sink_thread import sending
from celeriac.telemetry import Telemetry
from celeriac.worker.log import begin_log
from celeriac.worker.output import OutputPolicy
from celeriac.worker.signals import signals_to
from celeriac.worker.start import output_policy

MAX_HEARTBEAT_AGE = 15.0  # seconds; a heartbeat may wait some seconds for a server that does not answer


@click.command(cls=SectionedCommand)
@url_option("ledger", metavar="PATH|URL", help="The ledger to serve. [default: the user's own]")
@parallelism_option
@connection_options
@local_run_option
@limit_options
@resource_options
@machine_options
@delay_option
@click.option(
    "--grace", metavar="SECONDS", help="Time for running commands of this process to end after TERM. [default: 30]"
)
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    shell_complete=complete_folder,
    help="Keep the output of each task in DIR/RUN%2FKEY.out and .err; without a broker, its artifacts, too.",
)
@listen_option
@click.option("--log-format", metavar="KIND", help="text or json. [default: text]")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error. [default: info]")
@exit_on_bad_input
def serve(config: str | None, local: bool, listen: str | None, **options: Any) -> None:
    """Run the files that `celeriac submit` puts in a ledger, on the workers of a broker or in this process.

    Several services can share a ledger. If they are on several machines, the ledger must be in PostgreSQL. If a service
    dies, the others take over its runs. Without a broker, only one service works at a time; the next one waits.

    [schedules.NAME] in celeriac.toml makes a run of a file at the times of a cron line or an interval: see
    `celeriac schedules`.

    TERM or Ctrl-C once: start nothing more, and leave waiting tasks in the ledger; commands of this process get --grace
    seconds to end. Twice: stop at once.
    """
    if listen is not None:
        check_web_libraries()
    limits = {name: options.pop(name) for name in LIMITS}
    settings = read_settings(options, config=config)
    connection = connection_of(settings, local=local)
    executor_config = config_of(settings, limits, connection)
    keep, schedules = settings.ledger_limits, read_schedules(config)
    for schedule in schedules:
        with exit_on_bad_jobs():
            schedule.read_tasks()
    begin_log(settings.worker.log_format, settings.worker.log_level)
    sinks, telemetry = make_sinks(settings), Telemetry()
    if connection is None:
        logging.getLogger("kombu").setLevel(logging.ERROR)  # it warns that a broker in memory has no host
    check_output_can_come(options["output"], connection)
    keeps_output = connection is None or options["output"] is not None
    policy = output_policy(settings.worker) if keeps_output else OutputPolicy()
    if connection is not None:
        check_service_servers(connection)
    with open_when_it_serves(lambda: open_ledger(settings)) as ledger:
        check_place(ledger, connection)
        warn_at_start(
            settings, connection, partial(log_event, level=logging.WARNING), *file_subjects(ledger.database.url)
        )
        journal = data_folder(ledger.database.url) / "serve"
        service = Service(
            ledger,
            lambda: cluster_for(connection, executor_config, policy, journal, telemetry=telemetry),
            output=stored_folder(policy.directory, on_workers=connection is not None),
            grace=settings.worker.grace if connection is None else None,
            keep=keep,
            schedules=schedules,
        )
        broker = masked(connection.broker) if connection else None
        log_event("serving", ledger=ledger.database.masked_url, broker=broker)
        with (
            signals_to(service.stop),
            sending(sinks, telemetry),
            beside_service(settings, listen, service, connection, telemetry),
        ):
            service.run()


@contextmanager
def beside_service(
    settings: Settings, listen: str | None, service: Service, connection: Connection | None, telemetry: Telemetry
) -> Iterator[None]:
    """Serve the page, the REST interface and the probes of a service, if it has an address for them. Raises
    `InvalidConfig`."""
    if listen is None:
        yield
        return
    from celeriac.web.health import HealthCheck  # imports the libraries of the web server

    checks = (
        HealthCheck("heartbeat", partial(heartbeat_problem, service)),
        HealthCheck("service", lambda: "the service is stopping" if service.is_stopping else None, only_ready=True),
    )
    with (
        open_ledger(settings, read_only=True) as shown,
        open_server(
            settings,
            listen,
            ledger=shown,
            connection=connection,
            checks=checks,
            shows_runs=True,
            telemetry=telemetry,
        ),
    ):
        yield


def heartbeat_problem(service: Service) -> str | None:
    age = service.heartbeat_age
    return None if age <= MAX_HEARTBEAT_AGE else f"the last heartbeat began {age:.0f} s ago"


def check_service_servers(connection: Connection) -> None:
    """Raise `BrokerUnavailable` or `BackendUnavailable` if waiting cannot make the servers usable. Else log it once."""
    from celeriac.broker.app import app_for
    from celeriac.cluster.preflight import check_servers

    try:
        check_servers(app_for(connection), (), timeout=connection.operation_timeout)
    except (BrokerUnavailable, BackendUnavailable) as error:
        if problem_of(error) is ServerProblem.REFUSED:
            raise
        log_event("tasks wait for a server, which is tried again each time", level=logging.WARNING, why=error)


def check_place(ledger: RunStore, connection: Connection | None) -> None:
    """Raise `InvalidConfig` if the ledger is on a server and commands run in this process.

    If this process lost the ledger for 10 s, others would declare it dead while its commands still run.
    """
    if connection is None and not ledger.database.is_file:
        raise InvalidConfig(
            "ledger", "a ledger on a server needs a broker, too", "give --broker, or a ledger in a file"
        )
