"""Tags: words of the user by which runs and tasks are found again."""

from __future__ import annotations

from collections.abc import Callable

from celeriac.errors import InvalidTask
from celeriac.task.task import describe

MAX_TAG_LENGTH = 100  # characters
SEPARATOR = ","
EXAMPLE = 'write for example ["nightly", "big"] or "nightly,big"'
RULE = f"write 1 to {MAX_TAG_LENGTH} printable characters without a comma"


def parse_tags(
    value: object, field: str = "tags", shown: Callable[[object], object] = lambda value: value
) -> tuple[str, ...]:
    """Return the tags of a list, or of a text that separates them by commas; one that is given twice only once.

    Raise `InvalidTask` for other values, with what `shown` makes of them.
    """
    given = [tag.strip() for tag in value.split(SEPARATOR)] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        raise InvalidTask(field, f"{describe(shown(value))} is not a list of tags", EXAMPLE)
    for tag in given:
        if not is_tag(tag):
            raise InvalidTask(field, f"{describe(shown(tag))} is not a tag", RULE)
    return tuple(dict.fromkeys(given))


def is_tag(tag: object) -> bool:
    """Return whether a value can be a tag: printable, without a comma, and without spaces around it."""
    return (
        isinstance(tag, str)
        and 0 < len(tag) <= MAX_TAG_LENGTH
        and SEPARATOR not in tag
        and tag.isprintable()
        and tag == tag.strip()
    )
