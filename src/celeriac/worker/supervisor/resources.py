"""The limit of open files: how many commands fit it."""

from __future__ import annotations

import resource

RETRY_DELAY = 0.1  # seconds between two attempts while the system is out of descriptors, processes or memory
DESCRIPTORS_PER_COMMAND = 8  # in a supervisor: the socket, two pipes with two ends each, two files, and one spare
LEAST = 20  # descriptors with which one command can run; with fewer, it would wait for ever
LEAST_OF_WORKER = 64  # the same for a worker of a broker, which has connections to servers, too
RESERVE = 32  # descriptors that are open beside those of commands, in a supervisor and in its worker
SPARE = 64  # descriptors by which the limit is raised beyond those of commands


def hard_limit() -> int | None:
    """Return how many files a process may have open after it has raised its own limit; None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if limit == resource.RLIM_INFINITY else limit


def commands_that_fit(limit: int | None, *, supervisors: int) -> float:
    """Return how many commands a worker can run at once with this hard limit of open files: one at least."""
    if limit is None:
        return float("inf")
    room = limit - RESERVE
    return max(1, min(room, supervisors * (room // DESCRIPTORS_PER_COMMAND)))


def warning_of_limit(parallelism: int, *, supervisors: int) -> str | None:
    """Return one line if so many commands at once do not fit the hard limit of open files."""
    limit = hard_limit()
    fitting = commands_that_fit(limit, supervisors=supervisors)
    if limit is None or parallelism <= fitting:
        return None
    return (
        f"a parallelism of {parallelism:,} does not fit the hard limit of {limit:,} open files: at most {fitting:,} "
        "commands run at once, and the others wait. Raise the limit with ulimit -Hn, or give a smaller parallelism"
    )


def allow_open_files(descriptors: int) -> None:
    """Raise the limit of open files if these descriptors need it; not earlier, because commands inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors + SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
