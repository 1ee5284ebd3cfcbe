"""The targets that are told of the end of a run: see `celeriac.runs.notices`."""

from __future__ import annotations

from msgspec import Struct


class NoticeTargets(Struct, frozen=True, kw_only=True):
    """The targets that are told of the end of a run. Both may hold passwords, so `repr` shows neither."""

    command: str | None = None
    """A command for the shell."""

    url: str | None = None
    first_failure: bool = False
    """Whether both are told of the first failure, too."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(first_failure={self.first_failure})"

    def __bool__(self) -> bool:
        return self.command is not None or self.url is not None
