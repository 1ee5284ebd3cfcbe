"""The templates of the pages, and how times and names look in them. It imports neither Airflow nor Celery."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from celeriac import __version__
from celeriac.airflow.page.wording import spoken

STATIC = Path(__file__).parent / "static"


def make_templates() -> Environment:
    """Return the templates. Each needs `base`, the address of the pages without a slash at its end."""
    templates = Environment(
        loader=PackageLoader("celeriac.airflow.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"spoken": spoken, "clock": clock, "moment": moment, "quoted": quoted}
    templates.globals["version"] = __version__
    return templates


def clock(when: datetime | None) -> str:
    """Return a time in UTC, in milliseconds; the page's script shows it as local time."""
    return "" if when is None else when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(seconds: float) -> datetime:
    """Return a time that is given in seconds since the epoch. One that no calendar has counts as its beginning."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


def quoted(text: Any) -> str:
    """Return a text as one part of a path."""
    return quote(str(text), safe="")
