"""The provider info: it describes this package's executor, commands and options to Airflow.

Every process of Airflow reads the info, so this module imports almost nothing. If Airflow's own Celery provider is
installed, the info leaves out the section [celery] and the command group `celery`: Airflow does not start if two
providers have the same section or the same command group.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from celeriac.airflow.option_table import (
    BROKER_TRANSPORT,
    BROKER_TRANSPORT_OPTIONS,
    CELERIAC_OPTIONS,
    CELERY_OPTIONS,
    RESULT_BACKEND_TRANSPORT,
    RESULT_BACKEND_TRANSPORT_OPTIONS,
    SENSITIVE,
    Option,
)

UPSTREAM_PROVIDER = "apache-airflow-providers-celery"


def get_provider_info() -> dict[str, Any]:
    config = {"celeriac": section("The executor celeriac.airflow.CeleryExecutor and its workers.", CELERIAC_OPTIONS)}
    if not is_upstream_provider_installed():
        config |= {
            "celery": section("Broker, result backend and workers.", CELERY_OPTIONS),
            BROKER_TRANSPORT: section("Options of the broker's client.", BROKER_TRANSPORT_OPTIONS),
            RESULT_BACKEND_TRANSPORT: section(
                "Options of the result backend's client.", RESULT_BACKEND_TRANSPORT_OPTIONS
            ),
        }
    return {
        "package-name": "celeriac",
        "name": "Celeriac",
        "description": "A CeleryExecutor that tracks every workload to its end.",
        "executors": ["celeriac.airflow.CeleryExecutor"],
        "cli": ["celeriac.airflow.cli_definition.get_cli_commands"],
        "config": config,
    }


def is_upstream_provider_installed() -> bool:
    try:
        distribution(UPSTREAM_PROVIDER)
    except PackageNotFoundError:
        return False
    return True


def section(description: str, options: Iterable[Option]) -> dict[str, Any]:
    return {"description": description, "options": {option.key: describe(option) for option in options}}


def describe(option: Option) -> dict[str, Any]:
    return {
        "description": option.description,
        "version_added": None,
        "type": option.type,
        "example": None,
        "default": None if option.default is None else escape_braces(option.default),
        **({"sensitive": True} if option.key in SENSITIVE else {}),
    }


def escape_braces(text: str) -> str:
    """Escape braces, because Airflow formats defaults with `str.format`."""
    return text.replace("{", "{{").replace("}", "}}")
