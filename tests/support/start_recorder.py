"""Commands that cannot lie: each writes down its start as its first act, and whether another run of its task lived."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from celeriac import Event, Reason, State

COMMAND = (
    "exec 9>>locks/$CELERIAC_KEY; flock -n 9 || echo $CELERIAC_KEY $CELERIAC_ATTEMPT >> overlaps;"
    " echo $CELERIAC_KEY $CELERIAC_ATTEMPT >> begun; "
)
"""The lock is held until the last process of the run is dead."""


class Witness:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "locks").mkdir()
        for name in ("begun", "overlaps"):
            (folder / name).touch()

    def command(self, then: str) -> str:
        return COMMAND + then

    @property
    def starts(self) -> list[tuple[str, int]]:
        """Key and attempt."""
        return self._read("begun")

    @property
    def overlaps(self) -> list[tuple[str, int]]:
        """Runs that began while another run of the same task lived."""
        return self._read("overlaps")

    def never_started(self, keys: list[str]) -> list[str]:
        begun = {key for key, _ in self.starts}
        return [key for key in keys if key not in begun]

    def unexplained(self, events: list[Event]) -> list[tuple[str, int]]:
        """Starts that are not the first one of the first attempt, nor the only one of an attempt after a recorded
        loss."""
        after_loss: defaultdict[str, set[int]] = defaultdict(lambda: {1})
        for event in events:
            if event.state is State.WAITING and event.reason is Reason.LOST:
                after_loss[str(event.key)].add(event.attempt + 1)
        counts = Counter(self.starts)
        return [start for start, times in counts.items() if times > 1 or start[1] not in after_loss[start[0]]]

    def _read(self, name: str) -> list[tuple[str, int]]:
        lines = (self.folder / name).read_text().splitlines()
        return [(key, int(attempt)) for key, attempt in (line.split() for line in lines)]
