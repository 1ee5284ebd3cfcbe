"""The Airflow integration: `[core] executor = celeriac.airflow.CeleryExecutor`. Only this package may import Airflow.

scheduler ─► executor (adoption, submitted, versions) ─► Celeriac's executor ─► broker ─┐
Airflow's API server ◄─ Airflow's supervisor ◄─ task ◄─ worker: airflow celeriac worker ◄┘

In:  workloads from the scheduler, and from messages; Airflow's configuration; commands of `airflow celeriac`.
Out: Celery messages; events in the scheduler's event buffer; Celery results.

executor, adoption, submitted, versions,
messages, failures, failure_log,
failure_file, stats, start_line            the scheduler's side
gone_worker                                the log of a running task, for the API server
cli_definition, cli_commands,
remote_commands, cli_explain, cli_output,
command_parts, worker_replies              `airflow celeriac …`
worker, worker_plan, worker_preparation,
worker_versions, sidecars                  the worker
task, claim_takeover, prefork_control,
request, task_end, task_reaper, processes  one workload in a child of the worker
task_log, workload_names                   lines in the logs of tasks, and names in log lines
config, options, option_table              Airflow's configuration, for both sides
plugin, page/                              Celeriac in Airflow's own page
provider                                   the description of this package for Airflow

It may import every other folder but `cli`, and nothing may import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.airflow.executor import CeleryExecutor

__all__ = ["CeleryExecutor"]


def __getattr__(name: str) -> Any:
    """Import the executor on first use: Airflow imports `provider` when executors cannot be imported yet."""
    if name == "CeleryExecutor":
        from celeriac.airflow.executor import CeleryExecutor

        return CeleryExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
