"""Make tasks in Python as the command line makes jobs: of a file, or of a template and values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from celeriac.errors import InvalidConfig
from celeriac.runs.job_file.arguments import check_lists
from celeriac.runs.job_file.reading import read_arguments, read_jobs
from celeriac.runs.job_file.template import JobTemplate, ValueList
from celeriac.task.task import Task

Lists = Iterable[object]


def read_tasks(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    template: str | None = None,
    key: str | None = None,
    **defaults: Any,
) -> list[Task]:
    """Return the tasks of a job file, as `celeriac run FILE` has them. `defaults` are fields for jobs without them.

    With a template, such as "gzip -k {file}", the file has values: a command is made of each row, object or line, and
    `key` is the template of the keys. Raises `BadJobs` with all problems of the file, and `InvalidConfig`.
    """
    if template is None and key is not None:
        raise InvalidConfig("key", "it needs a template", "give template, or remove it")
    made = None if template is None else JobTemplate(command=template, key=key)
    return list(read_jobs(path, format, defaults, template=made))


def make_tasks(
    template: str,
    *lists: Lists,
    linked: bool = False,
    grid: Mapping[str, Lists] | None = None,
    key: str | None = None,
    **defaults: Any,
) -> list[Task]:
    """Return a task for each combination of the values, as `celeriac run -t TEMPLATE ::: VALUES` has them.

    The values of the first list are {1} in the template, or {} if it is the only one; those of `grid` have the names in
    it. With `linked`, the lists have the same length, and the first value of one goes with the first of the others.
    `key` is the template of the keys, and `defaults` are fields of each task. Raises `BadJobs` and `InvalidConfig`.
    """
    named = [(None, values) for values in lists] + list((grid or {}).items())
    if not named:
        raise InvalidConfig("template", "there are no values", 'give lists of them, for example ["a", "b"]')
    value_lists = tuple(
        ValueList(values=texts(values), name=name, is_linked=linked and name is None and place > 0)
        for place, (name, values) in enumerate(named)
    )
    check_lists(value_lists)
    return list(read_arguments(JobTemplate(command=template, key=key, lists=value_lists), defaults))


def texts(values: Lists) -> tuple[str, ...]:
    """Return values as texts. Raises `InvalidConfig` for a text: its characters are not meant."""
    if isinstance(values, str | bytes):
        raise InvalidConfig("template", f"{values!r} is no list of values", f"write [{values!r}]")
    return tuple(map(str, values))
