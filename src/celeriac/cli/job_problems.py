"""The report of a bad job file by `run`, `retry` and `submit`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from celeriac.cli.exit_status import BAD_INPUT
from celeriac.cli.json_errors import print_json_error
from celeriac.cli.messages import print_line
from celeriac.runs.job_file import BadJobs

MAX_PROBLEMS = 100  # in text: a file of another format than its name says has one in each line


@contextmanager
def exit_on_bad_jobs() -> Iterator[None]:
    """Print each problem of a job file on a line of its own, and exit with status 2."""
    try:
        yield
    except BadJobs as error:
        for problem in error.problems[:MAX_PROBLEMS]:
            print_line(str(problem))
        if len(error.problems) > MAX_PROBLEMS:
            print_line(f"and {len(error.problems) - MAX_PROBLEMS:,} more problems")
        print_json_error("\n".join(map(str, error.problems)), error.problems)
        sys.exit(BAD_INPUT)
