"""The line that the scheduler logs when it starts an executor: version, servers, and what is on."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celeriac import __version__
from celeriac.airflow import stats
from celeriac.airflow.config import carries_priority, signing_keys
from celeriac.airflow.options import Options
from celeriac.backend.kind import BackendKind, backend_kind
from celeriac.broker.broker_list import broker_list_of
from celeriac.config.masking import masked


def start_line(app: Celery, conf: Any, parallelism: int) -> str:
    """Return the line. It shows no password and no key."""
    options = Options(conf)
    switches = {
        "claims and leases": backend_kind(app) is not BackendKind.OTHER,
        "signing": signing_keys(conf) is not None,
        "broker priorities": carries_priority(app, conf),
        "late binding": False,
        "deletion of results": options.boolean("celeriac", "delete_results"),
        "Airflow's metrics": stats.is_enabled(),
    }
    parts = [
        f"Celeriac {__version__}" if options.team_name is None else f"Celeriac {__version__}, team {options.team_name}",
        f"broker {broker_list_of(app)}",
        f"result backend {masked(app.conf.result_backend)}",
        f"parallelism {parallelism or 'unlimited'}",
    ]
    for state, is_on in (("on", True), ("off", False)):
        if names := [name for name, value in switches.items() if value is is_on]:
            parts.append(f"{state}: {', '.join(names)}")
    return "; ".join(parts)
