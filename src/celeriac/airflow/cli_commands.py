"""The commands `airflow celeriac worker|flower|stop|status|check|doctor`. Their options are in `cli_definition`.

The commands that ask workers are in `remote_commands`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from airflow.cli.simple_table import AirflowConsole
from airflow.utils import cli
from celery import Celery
from celery.utils.nodenames import default_nodename, host_format

from celeriac.airflow.cli_output import Show
from celeriac.airflow.command_parts import exit_with_one_line, load_app, without_logs
from celeriac.airflow.doctor import airflow_subjects
from celeriac.airflow.options import Options, invalid_option
from celeriac.airflow.worker import run
from celeriac.airflow.worker_plan import parse_umask, plan_worker
from celeriac.airflow.worker_preparation import prepare
from celeriac.airflow.worker_replies import ask_all, ask_named, report_silent
from celeriac.airflow.worker_versions import load_conf, set_start_method
from celeriac.broker.session import BrokerSession
from celeriac.cluster.status import status_of
from celeriac.cluster.status_parts import Status, WorkerStatus
from celeriac.cluster.worker_check import check_worker
from celeriac.cluster.worker_registry import REPLY_TIMEOUT
from celeriac.doctor.check import Finding, Level, examine
from celeriac.doctor.text import count_of, plain_lines
from celeriac.errors import BackendUnavailable, InvalidConfig

DOCTOR_TIMEOUT = 30.0  # seconds for all checks
PROCESS_NAME = "worker"
"""In the names of pid files and log files."""


# — worker —


@cli.action_cli(check_db=False)
@exit_with_one_line
def worker(args: Any) -> None:
    """Run workloads until a signal ends the worker."""
    from airflow.settings import DAEMON_UMASK

    set_start_method()
    plan = plan_worker(args, load_conf(args.team))
    umask = parse_umask(args.umask or Options(plan.conf).text("celery", "worker_umask") or DAEMON_UMASK)
    prepare(plan, check_name=bool(args.celery_hostname))

    from airflow.cli.commands.daemon_utils import run_command_with_daemon_option

    pid_file, *_ = cli.setup_locations(process=PROCESS_NAME, pid=args.pid)
    run_command_with_daemon_option(
        args=args,
        process_name=PROCESS_NAME,
        callback=lambda: run(plan),
        should_setup_logging=True,
        umask=umask,
        pid_file=pid_file,
    )


# — flower —


@cli.action_cli(check_db=False)
@exit_with_one_line
def flower(args: Any) -> None:
    """Run Flower, a program of its own, with this Airflow's broker."""
    if find_spec("flower") is None:
        raise SystemExit("airflow celeriac: Flower is not installed: pip install flower")
    app, options = load_app(args.team)
    command = flower_command(args, options)

    from airflow.cli.commands.daemon_utils import run_command_with_daemon_option

    run_command_with_daemon_option(args=args, process_name="flower", callback=lambda: app.start(command))


def flower_command(args: Any, options: Options) -> list[str]:
    """Return the command line for Celery. An option that is not given has its value in [celery]."""
    host = args.hostname or options.text("celery", "flower_host")
    port = options.integer("celery", "flower_port") if args.port is None else args.port
    given = {
        "broker-api": args.broker_api,
        "url-prefix": options.text("celery", "flower_url_prefix") if args.url_prefix is None else args.url_prefix,
        "basic-auth": options.text("celery", "flower_basic_auth") if args.basic_auth is None else args.basic_auth,
        "conf": args.flower_conf,
    }
    command = ["flower", options.text("celery", "broker_url"), f"--address={host}", f"--port={port}"]
    return command + [f"--{name}={value}" for name, value in given.items() if value]


# — stop —


@cli.action_cli(check_db=False)
def stop(args: Any) -> None:
    """Send TERM to the worker of a pid file. The worker removes the file. If it has ended, remove the file here."""
    path = Path(cli.setup_locations(process=PROCESS_NAME, pid=args.pid)[0])
    try:
        pid = int(path.read_text())
        psutil.Process(pid).terminate()
    except FileNotFoundError:
        raise SystemExit(
            f"airflow celeriac: there is no pid file {path}; only a worker started with --daemon has one, give its"
            " --pid here, too"
        ) from None
    except (ValueError, UnicodeDecodeError):
        raise SystemExit(f"airflow celeriac: {path} contains no process id; give the pid file of a worker") from None
    except psutil.NoSuchProcess:
        path.unlink(missing_ok=True)
        print(f"Worker {pid} had ended without removing its pid file {path}; it is removed now.")  # noqa: T201
    except psutil.AccessDenied:
        raise SystemExit(
            f"airflow celeriac: process {pid} of {path} belongs to another user; stop it as that user"
        ) from None
    else:
        print(f"Worker {pid} is draining: it takes no more workloads, and exits when its running ones have ended.")  # noqa: T201


# — status —


@exit_with_one_line
def status(args: Any) -> Show:
    app, options = load_app(args.team)
    queue = options.text("operators", "default_queue")
    timeout = options.seconds("celery", "operation_timeout")
    broker_status = status_of(app, [queue], timeout=timeout)
    running = running_workloads(app, broker_status.workers, timeout)
    return lambda: show_status(broker_status, running, AirflowConsole(), args.output)


def show_status(broker_status: Status, running: Mapping[str, list[str]], console: AirflowConsole, output: str) -> None:
    """Print the status. `running` has the descriptions of the running workloads by worker."""
    queues = [asdict(queue) for queue in broker_status.queues]
    workers: list[dict[str, Any]] = [
        {
            "name": worker.name,
            "queues": list(worker.queues),
            "concurrency": worker.concurrency,
            "running": running.get(worker.name, []),
        }
        for worker in broker_status.workers
    ]
    match output:
        case "json":
            print(json.dumps({"queues": queues, "workers": workers}))  # noqa: T201
        case "yaml":
            console.print_as_yaml({"queues": queues, "workers": workers})
        case _:
            for worker in workers:
                worker["running"] = len(worker["running"])
            print_table = console.print_as_plain_table if output == "plain" else console.print_as_table
            tasks = [{"worker": name, "running": text} for name in sorted(running) for text in running[name]]
            for table in (queues, workers, tasks):
                if table:
                    print_table(table)


def running_workloads(app: Celery, workers: Collection[WorkerStatus], timeout: float) -> dict[str, list[str]]:
    """Return descriptions of the running workloads by worker; none if the broker has just become unavailable.

    A worker that does not reply is named on standard error. What it runs is known from its lease, by the ids alone.
    """
    session = BrokerSession(app, timeout=max(timeout, 2 * REPLY_TIMEOUT))
    live = {worker.name: [*(worker.tasks or ())] for worker in workers if not worker.is_suspected}
    try:
        with session.connect() as connection:
            if app.conf.worker_enable_remote_control:
                replies = ask_named(app, connection, "active", live)
            else:  # workers may have another setting
                replies = ask_all(app, connection, "active", expected=())
    except Exception as error:
        if not session.is_broker_error(error):
            raise
        return {}
    report_silent(replies.silent, "what it runs is shown by its ids")
    active = ((name, reply) for name, reply in replies.by_worker.items() if isinstance(reply, list))
    return live | {name: [*map(describe_request, requests)] for name, requests in active}


def describe_request(request: Mapping[str, Any]) -> str:
    """Return the name of a request's workload, without the rest of the message, which holds a token."""
    try:
        workload = json.loads(request["args"][0])
        ti = workload["ti"]
        index = f" [{ti['map_index']}]" if ti.get("map_index", -1) not in (-1, None) else ""
        return f"{ti['dag_id']}.{ti['task_id']}{index} {ti['run_id']} try {ti['try_number']}"
    except (LookupError, TypeError, ValueError):
        return str(request.get("id"))


# — check —


@exit_with_one_line
def check(args: Any) -> Show:
    """Find whether a worker lives. The exit status is 1 only if a restart would help.

    During an outage of the result backend it is 0: a probe that failed then would make Kubernetes restart all workers,
    although their tasks can go on.
    """
    with without_logs():
        app, options = load_app(args.team)
        name = args.worker or host_format(default_nodename(None))
        try:
            result = check_worker(app, name, timeout=options.seconds("celery", "operation_timeout"))
        except BackendUnavailable as error:
            return partial(print, f"{name}: unknown: {error}")
        except InvalidConfig as error:
            raise invalid_option("celery", "result_backend", error.problem, error.remedy) from None
    if result.problem is not None:
        raise SystemExit(f"airflow celeriac: {result.name}: {result.problem}")
    return partial(print, f"{result.name}: {result.summary}")


# — doctor —


@exit_with_one_line
def doctor(args: Any) -> Show:
    with without_logs():
        findings = examine(airflow_subjects(load_conf(args.team), args.team), timeout=DOCTOR_TIMEOUT)
    return partial(show_findings, findings, args.output)


def show_findings(findings: Sequence[Finding], output: str) -> None:
    """Print the findings. The exit status is 1 after an error."""
    errors, warnings = count_of(findings, Level.ERROR), count_of(findings, Level.WARNING)
    content = {"findings": [*map(asdict, findings)], "errors": errors, "warnings": warnings}
    match output:
        case "json":
            print(json.dumps(content))  # noqa: T201
        case "yaml":
            AirflowConsole().print_as_yaml(json.loads(json.dumps(content)))
        case _:
            lines = [*plain_lines(findings), f"{len(findings)} checks: {errors} errors, {warnings} warnings"]
            print("\n".join(lines))  # noqa: T201
    if errors:
        raise SystemExit(1)
