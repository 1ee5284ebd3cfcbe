"""The tags of runs. They are stored with the other inputs of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, select

from celeriac.ledger.codec import decode
from celeriac.ledger.schema import INPUTS, RUNS

TAGGED = INPUTS.c.inputs.like('%"tags":%')  # inside a JSON string, these quotes would be escaped
TAGGED_INPUTS = "tagged_inputs"


class Tagged(msgspec.Struct):
    """The tags in the inputs of a run."""

    tags: tuple[str, ...] = ()


DECODER = msgspec.json.Decoder(Tagged)


def tagged_inputs() -> ColumnElement[Any]:
    """Return a column for a query of runs: the inputs of a run that has tags."""
    inputs = select(INPUTS.c.inputs).where(INPUTS.c.run == RUNS.c.id, TAGGED)
    return inputs.scalar_subquery().label(TAGGED_INPUTS)


def has_tags() -> ColumnElement[bool]:
    """Return the condition of runs that have tags."""
    return RUNS.c.id.in_(select(INPUTS.c.run).where(TAGGED))


def tags_of(row: Any) -> tuple[str, ...]:
    """Return the tags of a row of a query of runs; none if they are malformed, or were not asked for."""
    text = row._mapping.get(TAGGED_INPUTS)
    try:
        return () if text is None else decode(DECODER, text).tags
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ()


def with_all_tags(rows: Iterable[Any], tags: Collection[str], limit: int | None = None) -> Iterator[Any]:
    """Yield the rows of the runs that have each of the tags, at most `limit`."""
    wanted = frozenset(tags)
    return islice((row for row in rows if wanted.issubset(tags_of(row))), limit)
