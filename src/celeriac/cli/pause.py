"""`celeriac pause`, and what `celeriac resume` shares with it.

RUN      ─► the ledger, for a submitted run; else the owner, which the ledger names
--queue  ─► all executors on the broker, or on this machine
--worker ─► the workers of these names: see `worker_pause`
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.completion import complete_run
from celeriac.cli.control_options import exit_on_error, local_option, open_control_client
from celeriac.cli.exit_status import FAILED
from celeriac.cli.formatting import count, on_one_line
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.messages import print_message
from celeriac.cli.options import check_local, check_text, connection_options, json_option
from celeriac.cli.url_options import url_option
from celeriac.config.settings import Settings, read_settings
from celeriac.executor.requests import PauseReply, PauseRequest

if TYPE_CHECKING:
    from celeriac.runs.pausing import PauseResult

run_argument = click.argument("run", required=False, shell_complete=complete_run)
ledger_of_run_option = url_option("ledger", metavar="PATH|URL", help="The ledger of RUN. [default: the user's own]")


@click.command(cls=SectionedCommand)
@run_argument
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="Only tasks of this queue. Repeatable.")
@click.option("--worker", "workers", multiple=True, metavar="NAME", help="A worker elsewhere. Repeatable.")
@ledger_of_run_option
@connection_options
@local_option
@json_option
@exit_on_error
def pause(**options: Any) -> None:
    """Start nothing more of a run, of a queue or on a worker, until `celeriac resume`.

    Running commands go on to their end, and so do tasks that were sent to a worker already. With RUN alone the whole
    run is paused, with --queue as well only its tasks of this queue. With --queue alone, all executors of the broker
    that is given here or in the configuration, or all runs of this user on this machine, send nothing more to the
    queue.

    With --worker, a worker on the broker takes nothing more, and other workers get its tasks. It may be named without
    its host if only one matches: w1 for w1@host. `celeriac status` lists the workers. A worker that starts again is not
    paused.

    A submitted run stays paused until it is resumed, whichever service has it. A `celeriac run` is paused until its
    process ends: `celeriac run --resume` goes on with it.

    Exit status: 0; 1 if nothing was there to pause, or it was paused already; 2 bad input.
    """
    sys.exit(change_pause(resume=False, **options))


def change_pause(
    *,
    resume: bool,
    run: str | None,
    queues: tuple[str, ...],
    workers: tuple[str, ...],
    ledger: str | None,
    config: str | None,
    local: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Pause or resume. Return the exit status. Raises `InvalidConfig`, `LedgerError` and `BrokerUnavailable`."""
    if workers and (run is not None or queues or ledger is not None or local):
        raise click.UsageError("--worker goes without RUN, --queue, --ledger and --local")
    if run is None and not queues and not workers:
        raise click.UsageError("name a RUN, a --queue or a --worker")
    if run is None and ledger is not None:
        raise click.UsageError("--ledger needs a RUN")
    check_text("RUN, --queue, --worker", *queues, *workers, *filter(None, [run]))
    check_local(options, local=local)
    settings = read_settings({**options, "ledger": ledger}, config=config)
    if workers:
        from celeriac.cli.worker_pause import change_worker_pauses

        return change_worker_pauses(settings, workers, resume=resume, as_json=as_json)
    queues = tuple(dict.fromkeys(queues))
    errors: list[str] = []
    if run is not None:
        results = [pause_run(settings, run, queues, resume=resume)]
    else:
        results, errors = pause_queues(settings, queues, local=local, resume=resume)
    for error in errors:
        print_message(error)
    if as_json:
        click.echo(json.dumps({"executors": [result.fields() for result in results], "errors": errors}))
    else:
        print_results(results, queues, resume=resume)
    return 0 if any(result.reply.changed for result in results) and not errors else FAILED


def pause_run(settings: Settings, name: str, queues: tuple[str, ...], *, resume: bool) -> PauseResult:
    """Pause or resume one run. Raises `InvalidConfig` and `LedgerError`."""
    from celeriac.cli.owner_options import asked_by, pause_of_run  # imports SQLAlchemy

    who = asked_by("resume" if resume else "pause")
    return pause_of_run(settings, name, queues, resume=resume, asked_by=who)


def pause_queues(
    settings: Settings, queues: tuple[str, ...], *, local: bool, resume: bool
) -> tuple[list[PauseResult], list[str]]:
    """Ask all executors. Return their replies and errors. Raises `BrokerUnavailable`."""
    from celeriac.cli.owner_options import asked_by  # imports SQLAlchemy
    from celeriac.runs.pausing import PauseResult

    request = PauseRequest(resume=resume, queues=queues, asked_by=asked_by("resume" if resume else "pause"))
    results: list[PauseResult] = []
    errors: list[str] = []
    with open_control_client(settings, local=local) as (client, _):
        for reply in client.send_request(request):
            if reply.error is not None:
                errors.append(f"executor {reply.executor} {reply.error}")
            elif reply.paused is not None:
                results.append(PauseResult(reply.executor, None, reply.paused))
    return results, errors


def print_results(results: list[PauseResult], queues: tuple[str, ...], *, resume: bool) -> None:
    if not results:
        print_message("no executor is running there; for those on a broker, give --broker-file")
    for executor, run, reply in results:
        who = f"run {run!r}" if run is not None else f"executor {executor}"
        names = f"queue{'s' if len(queues) > 1 else ''} {', '.join(map(repr, queues))}" if queues else ""
        what = f"{names} of {who}" if names else who
        if not reply.changed:
            print_message(f"{what}: {'not paused' if resume else 'already paused'}")
            continue
        text = f"{what}: {'resumed' if resume else 'paused'}"
        text += f", {count(reply.waiting, 'task')} waiting, {reply.in_flight:,} in flight"
        click.echo(on_one_line(text + still_paused(reply, resume=resume)))


def still_paused(reply: PauseReply, *, resume: bool) -> str:
    """Return what a resume has left paused, as the end of a sentence."""
    if not resume:
        return ""
    if reply.paused:
        return "; the run as a whole is still paused"
    names = ", ".join(map(repr, reply.queues))
    return f"; still paused: queue {names}, until resume --queue" if names else ""
