"""The question before a change of the page, as values, and what an action is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from celeriac.task.task import MAX_PRIORITY
from celeriac.web.api.endpoint import Call
from celeriac.web.errors import BadValue
from celeriac.web.reads import Reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The thing that an address names."""

    run: str = ""
    key: str = ""
    worker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberField:
    """A field for a whole number."""

    name: str
    label: str
    value: int
    """The present number."""

    minimum: int
    maximum: int = MAX_PRIORITY

    def read(self, form: Mapping[str, str]) -> int:
        """Return the number in a form. Raises `BadValue`."""
        try:
            number = int(form.get(self.name, ""))
        except ValueError:
            raise BadValue(f"The {self.name} is not a whole number.") from None
        if not self.minimum <= number <= self.maximum:
            raise BadValue(f"The {self.name} is not from {self.minimum:,} to {self.maximum:,}.")
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The text of a confirmation."""

    title: str
    effect: str
    """The thing that will happen."""

    button: str
    is_dangerous: bool = False
    choices: tuple[tuple[str, str], ...] = ()
    """Values and labels of which one is chosen; the first one is the default."""

    number: NumberField | None = None
    """The number that is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One kind of change."""

    ask: Callable[[Reads, Target], Question]
    perform: Callable[[Call, Target, Mapping[str, str]], str]
    """Make the change. Return a sentence about it. Raises `WebError` and `CeleriacError`."""


def with_body(call: Call, body: Any) -> Call:
    """Return the same request with a body."""
    return replace(call, body=body)
