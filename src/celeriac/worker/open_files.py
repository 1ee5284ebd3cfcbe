"""The check of the limit of open files, before anything starts."""

from __future__ import annotations

from celeriac.errors import InvalidConfig
from celeriac.worker.supervisor.resources import LEAST, hard_limit, warning_of_limit


def check_open_files(parallelism: int, *, supervisors: int, least: int = LEAST) -> str | None:
    """Return a warning if so many commands do not fit the hard limit. Raises `InvalidConfig` if not even one does,
    because the limit is below `least`."""
    limit = hard_limit()
    if limit is not None and limit < least:
        problem = f"the hard limit of {limit} open files is too low to run a command"
        raise InvalidConfig("open files", problem, f"raise it with ulimit -Hn to {least} or more")
    return warning_of_limit(parallelism, supervisors=supervisors)
