"""Whether a process can do its job: `/healthz` and `/readyz`.

Each check is a function that returns what is wrong, or None. Checks of servers run in threads, at most once in
`MIN_AGE`, however many clients ask: a probe costs a server no more than a worker's lease does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from anyio import CapacityLimiter, to_thread

from celeriac.errors import CeleriacError, describe_error
from celeriac.server_errors import is_server_error

MIN_AGE = 1.0  # seconds between two calls of one check
CHECK_TIMEOUT = 5.0  # seconds
Check = Callable[[], str | None]


class HealthCheck(NamedTuple):
    """One condition that a process needs to do its job."""

    name: str
    find_problem: Check
    """Return what is wrong, as one line without secrets; None if all is well. May block, and may raise."""

    only_ready: bool = False
    """Whether it counts for `/readyz` alone: the process is well, and does not take new work."""


@dataclass(slots=True)
class LastResult:
    """The last result of one check."""

    problem: str | None = None
    at: float = float("-inf")
    running: asyncio.Task[str | None] | None = field(default=None, repr=False)


class HealthBoard:
    """The checks of one process. Used by one event loop."""

    def __init__(self, checks: Sequence[HealthCheck]) -> None:
        self._checks = tuple(checks)
        self._results = {check.name: LastResult() for check in checks}
        self._threads = CapacityLimiter(max(1, len(checks)))
        """Threads of its own: requests that wait for a server may have all others."""

    async def report(self, *, ready: bool) -> tuple[bool, dict[str, Any]]:
        """Return whether all checks pass, and the results as JSON values. With `ready`, all checks count."""
        checks = [check for check in self._checks if ready or not check.only_ready]
        problems = await asyncio.gather(*map(self._problem_of, checks))
        results = [
            {"name": check.name, "ok": problem is None, "problem": problem}
            for check, problem in zip(checks, problems, strict=True)
        ]
        is_ok = not any(problems)
        return is_ok, {"status": "ok" if is_ok else "failing", "checks": results}

    async def _problem_of(self, check: HealthCheck) -> str | None:
        last = self._results[check.name]
        if last.running is None and time.monotonic() - last.at < MIN_AGE:
            return last.problem
        if last.running is None:
            last.running = asyncio.create_task(self._run(check, last))
        done, _ = await asyncio.wait([last.running], timeout=CHECK_TIMEOUT)
        return last.problem if done else f"has not answered for {CHECK_TIMEOUT:g} s"

    async def _run(self, check: HealthCheck, last: LastResult) -> str | None:
        try:
            last.problem = await to_thread.run_sync(problem_of, check, limiter=self._threads)
        finally:
            last.at, last.running = time.monotonic(), None
        return last.problem


def problem_of(check: HealthCheck) -> str | None:
    """Return what is wrong. An error that the check raises is a problem, too."""
    try:
        return check.find_problem()
    except CeleriacError as error:
        return str(error)
    except Exception as error:
        if not is_server_error(error):
            raise
        return describe_error(error)
