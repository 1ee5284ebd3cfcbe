"""Artifacts: patterns of the files that an attempt leaves, which are copied beside its output."""

from __future__ import annotations

from collections.abc import Callable

from celeriac.errors import InvalidTask
from celeriac.task.task import describe, is_unicode

MAX_PATTERNS = 100
MAX_PATTERN_LENGTH = 1_000  # characters
EXAMPLE = 'write for example ["*.csv", "plots/**"]'


def parse_artifacts(value: object, shown: Callable[[object], object] = lambda value: value) -> tuple[str, ...]:
    """Return the patterns of a list, or the one of a text.

    Raise `InvalidTask`, with what `shown` makes of the value, for what is no pattern, or leads out of the folder of the
    attempt.
    """
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        raise InvalidTask("artifacts", f"{describe(shown(value))} is not a list of patterns", EXAMPLE)
    if len(given) > MAX_PATTERNS:
        raise InvalidTask("artifacts", f"there are more than {MAX_PATTERNS}", "name a folder, or use wildcards")
    for pattern in given:
        if (problem := problem_of(pattern)) is not None:
            raise InvalidTask("artifacts", f"{describe(shown(pattern))} {problem}", EXAMPLE)
    return tuple(dict.fromkeys(given))


def problem_of(pattern: object) -> str | None:
    """Return what is wrong with a pattern, as the end of a sentence; None if it is usable."""
    if not isinstance(pattern, str) or not pattern or "\0" in pattern or not is_unicode(pattern):
        return "is not a pattern"
    if len(pattern) > MAX_PATTERN_LENGTH:
        return f"is longer than {MAX_PATTERN_LENGTH:,} characters"
    if pattern.startswith("/"):
        return "is absolute; patterns are relative to the folder of the attempt"
    if ".." in pattern.split("/"):
        return "leads out of the folder of the attempt"
    return None
