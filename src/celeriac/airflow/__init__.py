"""The Airflow door: `[core] executor = celeriac.airflow.CeleryExecutor`. Only this package knows Airflow.

scheduler ─► executor ─► workload, versions ─► Celeriac's own executor ─► broker
worker    ◄─ commands: airflow celeriac worker ◄──────────────────────────┘
config       the [celery] section, for both
provider     what Airflow is told of this package
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.airflow.executor import CeleryExecutor

__all__ = ["CeleryExecutor"]


def __getattr__(name: str) -> Any:
    """Airflow reads what a provider is before it can import an executor."""
    if name == "CeleryExecutor":
        from celeriac.airflow.executor import CeleryExecutor

        return CeleryExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
