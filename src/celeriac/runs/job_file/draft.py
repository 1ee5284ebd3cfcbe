"""A job that was checked when its file was read, and becomes a task when it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from celeriac.task.task import Command, Task


class Draft(msgspec.Struct, gc=False):
    """A checked job that is no task yet."""

    command: Command
    key: str | int
    """Its key, or the number of its line if it has no key of its own."""

    fields: Mapping[str, Any]
    """Its other fields, with the defaults. Jobs with the same fields share one mapping."""

    def build(self) -> Task:
        return Task(key=str(self.key), command=self.command, **self.fields)
