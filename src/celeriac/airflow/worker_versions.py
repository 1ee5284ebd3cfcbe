"""The differences between Airflow's versions for a worker: one small function for each difference.

A function tests which features exist, not the version number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from airflow.executors import workloads
from pydantic import TypeAdapter

from celeriac.airflow.options import Options
from celeriac.log_lines import logger_for

log = logger_for(__name__)


def set_start_method() -> None:
    """Set the start method of the log server and other processes: an option of Airflow 3.3 and later."""
    from airflow.utils import process_utils

    if hasattr(process_utils, "set_component_mp_start_method"):
        process_utils.set_component_mp_start_method("celery")


def load_conf(team: str | None) -> Any:
    """Return a team's configuration. Without a team, return the Task SDK's, which has the secrets backend for workers.

    Raises `SystemExit` if a team is given, and this Airflow has no teams.
    """
    if team is not None:
        return load_team_conf(team)
    try:
        from airflow.sdk.configuration import conf
    except ImportError:  # 3.1
        from airflow.configuration import conf
    return conf


def load_team_conf(team: str) -> Any:
    """Return the configuration of a team, which only Airflow's core can read."""
    from airflow.configuration import conf
    from airflow.executors.base_executor import ExecutorConf

    if not hasattr(ExecutorConf, "getsection"):
        raise SystemExit("airflow celeriac: --team needs Airflow 3.2 or later; leave it out, or upgrade Airflow")
    if not conf.getboolean("core", "multi_team", fallback=False):
        raise SystemExit("airflow celeriac: --team needs [core] multi_team = True; set it, or leave out --team")
    return ExecutorConf(team_name=team)


def workload_decoder() -> TypeAdapter[Any]:
    return TypeAdapter(getattr(workloads, "ExecutorWorkload", None) or workloads.All)


def already_running_errors() -> tuple[type[Exception], ...]:
    """Return the error for a task that runs elsewhere: the API server reports it from 3.1.9 on."""
    try:
        from airflow.sdk.exceptions import TaskAlreadyRunningError
    except ImportError:
        return ()
    return (TaskAlreadyRunningError,)


def run_workload(workload: Any, to_stdout: bool) -> None:
    """Run a workload in this process, to its end.

    Raises the errors that keep Airflow's supervisor from reporting the end to the API server.
    """
    from airflow.executors.base_executor import BaseExecutor

    if hasattr(BaseExecutor, "run_workload"):  # 3.3
        BaseExecutor.run_workload(workload, subprocess_logs_to_stdout=to_stdout)
    elif isinstance(workload, workloads.ExecuteTask):
        supervise_task(workload, to_stdout)
    elif hasattr(workloads, "ExecuteCallback") and isinstance(workload, workloads.ExecuteCallback):
        execute_callback(workload)
    else:
        raise TypeError(f"this version of Airflow cannot run a workload of type {type(workload).__name__}")


def supervise_task(workload: Any, to_stdout: bool) -> None:
    """Run a task in 3.1 and 3.2."""
    from airflow.sdk.execution_time.supervisor import supervise

    sentry = getattr(workload, "sentry_integration", None)  # 3.2
    supervise(
        ti=workload.ti,
        bundle_info=workload.bundle_info,
        dag_rel_path=workload.dag_rel_path,
        token=workload.token,
        server=execution_api_url(),
        log_path=workload.log_path,
        subprocess_logs_to_stdout=to_stdout,
        **({} if sentry is None else {"sentry_integration": sentry}),
    )


def execution_api_url() -> str:
    """Return the URL of the execution API: Airflow 3.1 and 3.2 do not find it by themselves."""
    options = Options(load_conf(None))
    if (url := options.get("core", "execution_api_server_url")) is not None:
        return url
    base = options.text("api", "base_url")
    if base.startswith("/"):
        base = f"http://localhost:8080{base}"
    return f"{base.rstrip('/')}/execution/"


def execute_callback(workload: Any) -> None:
    """Run a callback in 3.2. Raises `RuntimeError` if it fails."""
    from airflow.executors.workloads.callback import execute_callback_workload

    succeeded, error = execute_callback_workload(workload.callback, log)
    if not succeeded:
        raise RuntimeError(error or "the callback failed")


# — the client of the API server —


def replace_request(send: Callable[[Callable[[], Any], str, Any], Any]) -> None:
    """Let `send` send each request of the task SDK's client.

    Its arguments are a callable that sends the request once, the request's path, and its content.
    """
    from airflow.sdk.api.client import Client

    once = getattr(Client, "_request_without_retry", None) or unwrapped(Client.request)

    def request(self: Any, method: str, path: Any, **options: Any) -> Any:
        options.pop("retry", None)  # Airflow 3.4 sends heartbeats without its own attempts
        return send(partial(once, self, method, path, **options), str(path), options.get("content"))

    Client.request = request


def unwrapped(request: Any) -> Any:
    """Return the method of Airflow 3.1 to 3.3 without its own attempts."""
    once = getattr(request, "__wrapped__", None)
    if once is None:
        log.warning(
            "This version of Airflow repeats its requests in an unknown way, and waits for the API server itself, too"
        )
    return once or request


def repeats_heartbeats() -> bool:
    """Return whether the SDK itself sends a failed heartbeat again at once, as it does until 3.3."""
    from airflow.sdk.api.client import Client

    return not hasattr(Client, "_request_without_retry")


def is_connection_error(error: BaseException) -> bool:
    """Return whether the API server gave no answer."""
    from airflow.sdk.api import client

    library = getattr(client, "httpx", None) or client.httpx2  # 3.4
    return isinstance(error, library.RequestError)


def starts_through_api_server(workload: Any) -> bool:
    """Return whether the supervisor asks the API server before it starts the code of the user."""
    if isinstance(workload, workloads.ExecuteTask):
        return True
    asks_for_callbacks = hasattr(workloads, "WorkloadType")  # 3.4
    return asks_for_callbacks and isinstance(workload, workloads.ExecuteCallback)


def set_max_failed_heartbeats(number: int | None) -> None:
    """Set the number of failed heartbeats after which the supervisor ends its task; None for no limit."""
    from airflow.sdk.execution_time import supervisor

    supervisor.MAX_FAILED_HEARTBEATS = sys.maxsize if number is None else number


# — the supervisor —


def watch_supervisor(on_kill: Callable[[], None], on_end: Callable[[int, Any], None]) -> None:
    """Call back when the supervisor itself ends its task, and when the task has ended, before that is reported.

    `on_end` gets the exit code, negative for a signal, and the logger of the task's own log.
    """
    from airflow.sdk.execution_time.supervisor import ActivitySubprocess

    kill = ActivitySubprocess.kill
    report = ActivitySubprocess.update_task_state_if_needed

    def kill_and_note(self: Any, *args: Any, **options: Any) -> Any:
        on_kill()
        return kill(self, *args, **options)

    def report_after_note(self: Any) -> Any:
        code = getattr(self, "_exit_code", None)
        if code is not None:
            on_end(int(code), self.process_log)
        return report(self)

    ActivitySubprocess.kill = kill_and_note
    ActivitySubprocess.update_task_state_if_needed = report_after_note


def let_term_reach_tasks() -> None:
    """Keep the supervisor of Airflow 3.4 from holding TERM back from its task until that has ended by itself.

    A child of the worker gets TERM only if its task must end, and forwards it: then the task calls `on_kill`.
    """
    try:
        from airflow.sdk.execution_time import coordinator
    except ImportError:  # until 3.3
        return
    if hasattr(coordinator, "_warm_shutdown_signals"):
        coordinator._warm_shutdown_signals = nullcontext
