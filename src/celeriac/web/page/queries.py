"""The parts of an address that choose what a page shows. A senseless one is left out: an address is no form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from starlette.datastructures import QueryParams

from celeriac.ledger.views import RunState
from celeriac.task.state import State

MAX_TEXT = 1_000  # characters of a filter
MAX_BACK = 20  # earlier pages that an address names


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsQuery:
    """The runs to list."""

    text: str = ""
    """A part of the name."""

    states: tuple[str, ...] = ()
    before: str | None = None

    @classmethod
    def parse(cls, given: QueryParams) -> Self:
        return cls(
            text=given.get("text", "").strip()[:MAX_TEXT],
            states=tuple(state.value for state in RunState if state.value in given.getlist("state")),
            before=given.get("before") or None,
        )

    @property
    def is_filtered(self) -> bool:
        return bool(self.text or self.states)


@dataclass(frozen=True, slots=True, kw_only=True)
class TasksQuery:
    """The tasks of a run to list."""

    text: str = ""
    """A part of the key."""

    queue: str = ""
    states: tuple[str, ...] = ()
    after: str | None = None
    """The place where the page begins; None for the first one."""

    back: tuple[str, ...] = ()
    """The places of the pages before, the nearest last; the first page has none."""

    @classmethod
    def parse(cls, given: QueryParams) -> Self:
        return cls(
            text=given.get("text", "").strip()[:MAX_TEXT],
            queue=given.get("queue", "").strip()[:MAX_TEXT],
            states=tuple(state.value for state in State if state.value in given.getlist("state")),
            after=given.get("after") or None,
            back=tuple(given.getlist("back")[-MAX_BACK:]),
        )

    @property
    def is_filtered(self) -> bool:
        return bool(self.text or self.queue or self.states)

    @property
    def back_of_next(self) -> tuple[str, ...]:
        """The places of the pages before the next page."""
        return (*self.back, self.after)[-MAX_BACK:] if self.after is not None else ()
