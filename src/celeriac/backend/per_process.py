"""Values that each process makes for itself: a child must not use the connections of its parent."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """One value in each process. Several threads may use it at once."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}

    def get(self) -> T:
        """Return the value of this process, made at its first use."""
        value = self.made()
        return self._values.setdefault(os.getpid(), self._make()) if value is None else value

    def made(self) -> T | None:
        """Return the value of this process; None if it was not used yet."""
        return self._values.get(os.getpid())

    def take(self) -> T | None:
        """Forget the value of this process, and return it; None if it was not used."""
        return self._values.pop(os.getpid(), None)
