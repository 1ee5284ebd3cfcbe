"""`celeriac check worker`: a probe for a container."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.control_options import exit_on_error, silence_logs
from celeriac.cli.exit_status import FAILED
from celeriac.cli.formatting import on_one_line
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.messages import print_message
from celeriac.cli.options import check_text, connection_options, json_option
from celeriac.config.settings import read_settings
from celeriac.errors import InvalidConfig

if TYPE_CHECKING:
    from celeriac.cluster.worker_check import WorkerCheck


WORKER = "worker"  # the only thing that can be checked so far


@click.command(cls=SectionedCommand)
@click.argument("kind", metavar="worker")
@click.argument("name")
@connection_options
@json_option
@exit_on_error
def check(kind: str, name: str, config: str | None, as_json: bool, **options: Any) -> None:
    """Check that the worker NAME lives: that it has renewed its lease within the last 10 s.

    It is a probe for a container without HTTP. It reads the lease from the result backend, and asks nothing of the
    worker. A NAME without a host means the worker of this host, or else the only one of that name. A worker that drains
    lives.

    Exit status: 0; 1 if it does not live, or the result backend does not answer; 2 bad input, or a refusal that waiting
    cannot end.
    """
    from celeriac.broker.app import app_for  # these import Celery
    from celeriac.cluster.worker_check import check_worker

    check_text("NAME", name)
    silence_logs()
    settings = read_settings(options, config=config)
    if kind != WORKER:
        raise InvalidConfig("worker", f"{kind!r} cannot be checked", f"write celeriac check {WORKER} NAME")
    connection = settings.connection
    result = check_worker(app_for(connection), name, timeout=connection.operation_timeout)
    if as_json:
        click.echo(json.dumps(fields_of(result)))
    elif result.problem is None:
        click.echo(on_one_line(f"{result.name}: {result.summary}"))
    if result.problem is not None:
        print_message(f"{result.name}: {result.problem}")
        sys.exit(FAILED)


def fields_of(result: WorkerCheck) -> dict[str, Any]:
    worker = None if result.worker is None else asdict(result.worker)
    return {"name": result.name, "ok": result.problem is None, "problem": result.problem, "worker": worker}
