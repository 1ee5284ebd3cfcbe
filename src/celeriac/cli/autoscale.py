"""`celeriac autoscale`. The autoscaler itself is in `celeriac.autoscale`."""

from __future__ import annotations

import getpass
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.autoscale_output import AutoscaleOutput
from celeriac.cli.control_options import exit_on_error, silence_logs
from celeriac.cli.exit_status import FAILED
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.messages import print_message
from celeriac.cli.options import connection_options, interrupt, json_option
from celeriac.cli.path_completion import complete_folder
from celeriac.config.settings import Settings, read_settings
from celeriac.errors import InvalidConfig
from celeriac.worker.signals import signals_to

if TYPE_CHECKING:
    from celeriac.autoscale.allocation import Scheduler
    from celeriac.autoscale.autoscaler import Autoscaler
    from celeriac.autoscale.decision import Limits
    from celeriac.autoscale.job import JobPlan

KINDS = ("slurm", "pbs")
DEFAULT_IDLE_EXIT = 120.0  # seconds
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class AutoscaleCommand(SectionedCommand):
    EXAMPLES = (
        ("celeriac autoscale slurm --max 20", "At most 20 allocations of one CPU."),
        ("… --slots 8 -- --partition=short", "Of 8 CPUs, with options of sbatch."),
        ("… --dry-run", "Show the script and the number."),
    )


@click.command(cls=AutoscaleCommand)
@click.argument("kind", metavar="CLUSTER")
@click.argument("scheduler_options", nargs=-1, metavar="[-- OPTIONS]")
@click.option(
    "--max", "maximum", type=click.IntRange(min=1), metavar="N", help="Largest number of allocations; it must be given."
)
@click.option(
    "--min",
    "minimum",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    help="Number of allocations also without tasks. [default: 0]",
)
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    help="CPUs of an allocation: its worker runs N commands at a time. [default: 1]",
)
@click.option("--queues", metavar="NAMES", help='Queues to serve, separated by commas. [default: the queue "default"]')
@click.option("--idle-exit", metavar="SECONDS", help="A worker ends after SECONDS without a task. [default: 120]")
@click.option(
    "--name", metavar="NAME", help="Name of the allocations, after celeriac-. [default: the queues, with - between]"
)
@click.option(
    "--folder",
    metavar="DIR",
    shell_complete=complete_folder,
    default="celeriac-autoscale",
    show_default=True,
    help="Folder for logs and for the workers' settings; the nodes must see it.",
)
@click.option("--python", metavar="PATH", default=sys.executable, help="Python on the nodes. [default: this one]")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.5),
    metavar="SECONDS",
    default=10.0,
    help="Time from one look to the next. [default: 10]",
)
@click.option("--once", is_flag=True, help="Look and act once, and leave everything as it is then.")
@click.option("--dry-run", is_flag=True, help="Show what would be submitted or cancelled now, and do nothing.")
@connection_options
@json_option
@exit_on_error
def autoscale(
    kind: str,
    scheduler_options: tuple[str, ...],
    maximum: int | None,
    minimum: int,
    slots: int,
    name: str | None,
    folder: str,
    python: str,
    interval: float,
    once: bool,
    dry_run: bool,
    config: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Start workers on a cluster: submit an allocation with a worker whenever tasks wait for a slot.

    CLUSTER is slurm or pbs, and OPTIONS go to sbatch or qsub. Each allocation is one job with one worker; it ends when
    its worker has had no task for --idle-exit seconds. Pending allocations that are not needed any more are cancelled,
    running ones never.

    It runs until TERM or Ctrl-C. Then it cancels the pending allocations; workers that run end when they are idle.
    After a restart it finds its allocations by their name.

    Exit status: 0; 1 if --once or --dry-run could not look or act; 2 bad input.
    """
    from celeriac.autoscale.decision import Limits

    if kind not in KINDS:
        raise InvalidConfig("CLUSTER", f"{kind!r} is not known", "give slurm or pbs")
    if maximum is None:
        raise InvalidConfig("--max", "it is missing", "give the largest number of allocations, such as --max 20")
    if minimum > maximum:
        raise InvalidConfig("--min", f"{minimum} is more than --max {maximum}", "give a smaller number")
    settings = read_settings(options, config=config)
    idle_exit = settings.worker.idle_exit or DEFAULT_IDLE_EXIT
    if idle_exit < 2 * interval:
        problem = f"{idle_exit:g} s is less than two looks, one every {interval:g} s"
        raise InvalidConfig("--idle-exit", problem, "give more, or a smaller --interval")
    plan = plan_of(settings, slots=slots, name=name, folder=folder, python=python, options=scheduler_options)
    scheduler = scheduler_of(kind, plan)
    silence_logs()
    output = AutoscaleOutput(as_json=as_json)
    stop = threading.Event()
    with (
        open_autoscaler(settings, plan, scheduler, Limits(minimum=minimum, maximum=maximum, slots=slots), output, stop)
        as autoscaler
    ):  # fmt: skip
        if dry_run:
            sys.exit(show_plan(autoscaler, scheduler, output))
        write_worker_settings(plan, settings, idle_exit)
        if once:
            sys.exit(0 if autoscaler.step() else FAILED)
        run_until_stopped(autoscaler, output, stop, interval, idle_exit)


def plan_of(
    settings: Settings, *, slots: int, name: str | None, folder: str, python: str, options: tuple[str, ...]
) -> JobPlan:
    """Return what all allocations have in common. Raises `InvalidConfig`."""
    from celeriac.autoscale.job import JobPlan

    given = "-".join(settings.worker.queues) if name is None else name
    if NAME.fullmatch(given) is None:
        remedy = "give --name with letters, digits, and . _ -, beginning with a letter or a digit"
        raise InvalidConfig("--name", f"{given!r} cannot name allocations", remedy)
    if not python:
        raise InvalidConfig("--python", "it is empty", "give the path of an interpreter with Celeriac on the nodes")
    return JobPlan(
        name=given,
        user=getpass.getuser(),
        slots=slots,
        grace=settings.worker.grace,
        folder=Path(folder).absolute(),
        python=python,
        options=options,
    )


def scheduler_of(kind: str, plan: JobPlan) -> Scheduler:
    """Return the scheduler. Raises `InvalidConfig` if it is not here."""
    from celeriac.autoscale.pbs import Pbs
    from celeriac.autoscale.slurm import Slurm

    scheduler: Scheduler = Slurm(plan) if kind == "slurm" else Pbs(plan)
    missing = [program for program in scheduler.programs if shutil.which(program) is None]
    if missing:
        problem = f"{' and '.join(missing)} cannot be found on the PATH"
        raise InvalidConfig(kind, problem, "start it where jobs are submitted, or load the module of the scheduler")
    return scheduler


@contextmanager
def open_autoscaler(
    settings: Settings,
    plan: JobPlan,
    scheduler: Scheduler,
    limits: Limits,
    output: AutoscaleOutput,
    stop: threading.Event,
) -> Iterator[Autoscaler]:
    """Connect the autoscaler. Raises `InvalidConfig`."""
    from celeriac.autoscale.autoscaler import Autoscaler
    from celeriac.autoscale.decision import Scaler, SubmitBackoff
    from celeriac.autoscale.demand import LoadReader
    from celeriac.broker.app import app_for

    connection = settings.connection
    backoff = SubmitBackoff(Random())
    app = app_for(connection)
    with closing(LoadReader(app, settings.worker.queues, timeout=connection.operation_timeout)) as reader:
        yield Autoscaler(
            scheduler,
            reader.read,
            scaler=Scaler(limits, backoff),
            backoff=backoff,
            worker_prefix=plan.worker_prefix(),
            report=output.report,
            should_stop=stop.is_set,
        )


def write_worker_settings(plan: JobPlan, settings: Settings, idle_exit: float) -> None:
    from celeriac.autoscale.job import write_settings

    own = {"queues": [*settings.worker.queues], "concurrency": plan.slots, "idle_exit": idle_exit}
    write_settings(plan, settings, own)


def show_plan(autoscaler: Autoscaler, scheduler: Scheduler, output: AutoscaleOutput) -> int:
    """Show what would be done now. Return the exit status."""
    look = autoscaler.look()
    if look is None or look.observation.unserved is None:
        return FAILED
    output.plan(look.decision, look.numbers, command=shlex.join(scheduler.submit_command()), script=scheduler.script())
    return 0


def run_until_stopped(
    autoscaler: Autoscaler, output: AutoscaleOutput, stop: threading.Event, interval: float, idle_exit: float
) -> None:
    """Look and act until a signal. Then cancel the pending allocations."""
    from celeriac.autoscale.allocation import SchedulerError
    from celeriac.autoscale.autoscaler import allocations_of

    def on_signal() -> None:
        if stop.is_set():
            interrupt()
        stop.set()

    with signals_to(on_signal):
        while not stop.is_set():
            autoscaler.step()
            stop.wait(interval)  # neither a scheduler nor an executor tells that something has changed
        output.clear()
        try:
            cancelled = autoscaler.cancel_pending()
        except SchedulerError as error:
            print_message(f"pending allocations were not cancelled: {error}")
            sys.exit(FAILED)
    words = f"cancelled {allocations_of(cancelled)}" if cancelled else "no allocation was pending"
    output.end(f"stopped: {words}; workers that run end after {idle_exit:g} s without a task", cancelled)
