"""Conditions as trees, and whether they hold for the values of a task.

A comparison with a value that a task does not have is false. `!=` and `!~` are exactly the opposites of `=` and `~`, so
they hold for such a task.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeAlias

from msgspec import Struct

Value: TypeAlias = str | float | tuple[str, ...] | None
"""A value of a task; of several texts, each is compared."""


class Operator(StrEnum):
    """How a value is compared."""

    EQUAL = "="
    NOT_EQUAL = "!="
    CONTAINS = "~"
    """In upper or lower case."""

    CONTAINS_NOT = "!~"
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="


class Comparison(Struct, frozen=True):
    """A field compared with a value."""

    field: str
    operator: Operator
    value: str | float


class Not(Struct, frozen=True):
    part: Node


class All(Struct, frozen=True):
    parts: tuple[Node, ...]


class Either(Struct, frozen=True):
    parts: tuple[Node, ...]


Node: TypeAlias = Comparison | Not | All | Either


def holds(node: Node, value_of: Callable[[str], Value]) -> bool:
    """Return whether a condition holds for the task with these values by field."""
    match node:
        case Comparison():
            return compare(value_of(node.field), node.operator, node.value)
        case Not():
            return not holds(node.part, value_of)
        case All():
            return all(holds(part, value_of) for part in node.parts)
        case Either():
            return any(holds(part, value_of) for part in node.parts)


def compare(value: Value, operator: Operator, wanted: str | float) -> bool:
    """Return whether a comparison is true."""
    match operator:
        case Operator.NOT_EQUAL:
            return not compare(value, Operator.EQUAL, wanted)
        case Operator.CONTAINS_NOT:
            return not compare(value, Operator.CONTAINS, wanted)
        case _ if isinstance(value, tuple):
            return any(compare(each, operator, wanted) for each in value)
        case Operator.EQUAL:
            return value == wanted
        case Operator.CONTAINS:
            return isinstance(value, str) and isinstance(wanted, str) and wanted.casefold() in value.casefold()
        case _:
            return isinstance(value, int | float) and isinstance(wanted, int | float) and ORDER[operator](value, wanted)


ORDER: dict[Operator, Callable[[float, float], bool]] = {
    Operator.LESS: lambda value, wanted: value < wanted,
    Operator.AT_MOST: lambda value, wanted: value <= wanted,
    Operator.MORE: lambda value, wanted: value > wanted,
    Operator.AT_LEAST: lambda value, wanted: value >= wanted,
}
