"""The live workers of a test: as many as it says, and all of them serve the default queue."""

from __future__ import annotations

from collections.abc import Mapping

from celeriac.executor.capacity import Capacity


class Workers(Capacity):
    """Tell how many workers are alive."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def by_queue(self) -> Mapping[str, int]:
        return {"default": self.number} if self.number else {}

    def why_held(self, queue: str) -> None:
        return None

    def shares(self) -> None:
        return None
