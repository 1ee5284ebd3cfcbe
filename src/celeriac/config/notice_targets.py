"""The targets that are told of the end of a run: see `celeriac.runs.notices`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeTargets:
    """The targets that are told of the end of a run. Both may hold passwords, so `repr` shows neither."""

    command: str | None = field(default=None, repr=False)
    """A command for the shell."""

    url: str | None = field(default=None, repr=False)
    first_failure: bool = False
    """Whether both are told of the first failure, too."""

    def __bool__(self) -> bool:
        return self.command is not None or self.url is not None
