"""Commands that record their own starts, and whether another run of their task was alive at that time."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from celeriac import Event, Reason, State

COMMAND = (
    "exec 9>>locks/$CELERIAC_KEY; flock -n 9 || echo $CELERIAC_KEY $CELERIAC_ATTEMPT >> overlaps;"
    " echo $CELERIAC_KEY $CELERIAC_ATTEMPT >> begun; "
)
"""The lock is held until the last process of the run is dead."""


class StartRecorder:
    """The records of all commands that ran in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "locks").mkdir()
        for name in ("begun", "overlaps"):
            (folder / name).touch()

    def command(self, then: str) -> str:
        """Return a shell command that records its start first."""
        return COMMAND + then

    @property
    def starts(self) -> list[tuple[str, int]]:
        """Key and attempt of each start."""
        return self._read("begun")

    @property
    def overlaps(self) -> list[tuple[str, int]]:
        """Key and attempt of each run that started while another run of its task was alive."""
        return self._read("overlaps")

    def never_started(self, keys: list[str]) -> list[str]:
        started = {key for key, _ in self.starts}
        return [key for key in keys if key not in started]

    def unexplained(self, events: list[Event]) -> list[tuple[str, int]]:
        """Return each start that is neither the only one of attempt 1 nor the only one of an attempt after a loss that
        an event reported."""
        explained: defaultdict[str, set[int]] = defaultdict(lambda: {1})
        for event in events:
            if event.state is State.WAITING and event.reason is Reason.LOST:
                explained[str(event.key)].add(event.attempt + 1)
        counts = Counter(self.starts)
        return [start for start, times in counts.items() if times > 1 or start[1] not in explained[start[0]]]

    def _read(self, name: str) -> list[tuple[str, int]]:
        lines = (self.folder / name).read_text().splitlines()
        return [(key, int(attempt)) for key, attempt in (line.split() for line in lines)]
