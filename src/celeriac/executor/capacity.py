"""The interface to the live workers: how many tasks they run at once, and which resources they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from celeriac.task.amounts import Amounts


class WorkerShare(Struct, frozen=True):
    """The resources that one worker shares out among the tasks of its queues."""

    total: Amounts
    queues: frozenset[str] | None = None
    """None for all queues."""


class Capacity(Protocol):
    """Knows the live workers."""

    def by_queue(self) -> Mapping[str, int] | None:
        """Return how many tasks the live workers of each queue run at once; None while that is not known."""
        ...

    def why_held(self, queue: str) -> str | None:
        """Return why the workers of a queue start nothing for now, for a person; None if one of them may start."""
        ...

    def shares(self) -> Mapping[str, WorkerShare] | None:
        """Return what each live worker has, by a name of it; None while that is not known.

        The same object means that nothing has changed."""
        ...
