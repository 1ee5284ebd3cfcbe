"""A condition for the tasks of a run: in SQL as far as that is easy, and for each row that is left."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, and_, func, not_, or_

from celeriac.ledger.schema import TASKS
from celeriac.ledger.where.fields import ALIASES, FIELDS, RowValues
from celeriac.ledger.where.parser import parse_where
from celeriac.ledger.where.tree import All, Comparison, Either, Node, Not, Operator, holds

COLUMNS: dict[str, ColumnElement[Any]] = {
    "state": TASKS.c.state,
    "attempt": TASKS.c.attempt,
    "lost": TASKS.c.lost,
    "priority": TASKS.c.priority,
    "reason": func.coalesce(TASKS.c.reason, ""),
}
"""The columns that every database compares as Python does. None of them is null."""

COMPARE: dict[Operator, Callable[[Any, Any], Any]] = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.AT_MOST: operator.le,
    Operator.MORE: operator.gt,
    Operator.AT_LEAST: operator.ge,
}
MAX_INTEGER = 2**31 - 1


class Condition(Struct, frozen=True):
    """A condition for tasks."""

    node: Node
    now: float | None = None
    """The time up to which tasks run or wait, in seconds since the epoch; None if no process has their run."""

    def matches(self, row: Any) -> bool:
        """Return whether the task of a row is meant."""
        return holds(self.node, RowValues(row, self.now).value_of)

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return conditions of SQL that each row meets that matches. Other rows may meet them, too."""
        found = narrowed(self.node)
        return [] if found is None else [found[0]]


def parse_condition(text: str, *, now: float | None = None, setting: str = "--where") -> Condition:
    """Return the condition of a text. Raises `InvalidConfig`, which names the `setting`."""
    return Condition(parse_where(text, FIELDS, ALIASES, setting), now)


def narrowed(node: Node) -> tuple[ColumnElement[bool], bool] | None:
    """Return a condition that each matching row meets, and whether no other row meets it; None if there is none."""
    match node:
        case Comparison():
            column = COLUMNS.get(node.field)
            is_number = not isinstance(node.value, str)
            if column is None or (is_number and abs(float(node.value)) > MAX_INTEGER):
                return None
            return COMPARE[node.operator](column, node.value), True
        case Not():
            part = narrowed(node.part)
            return (not_(part[0]), True) if part is not None and part[1] else None
        case All():
            parts = [part for part in map(narrowed, node.parts) if part is not None]
            is_exact = len(parts) == len(node.parts) and all(exact for _, exact in parts)
            return (and_(*(condition for condition, _ in parts)), is_exact) if parts else None
        case Either():
            either = [narrowed(part) for part in node.parts]
            known = [part for part in either if part is not None]
            if len(known) < len(either):
                return None
            return or_(*(condition for condition, _ in known)), all(exact for _, exact in known)
