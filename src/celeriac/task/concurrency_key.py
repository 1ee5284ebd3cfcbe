"""Check the concurrency key of a task."""

from __future__ import annotations

from celeriac.errors import InvalidTask
from celeriac.task.task import describe

MAX_LENGTH = 100  # characters


def check_concurrency_key(key: object) -> None:
    """Raise `InvalidTask` unless the key is a short, printable text, and not the one that stands for all keys."""
    if not isinstance(key, str) or not key.isprintable() or not 0 < len(key) <= MAX_LENGTH or key == "*":
        rule = f'write 1 to {MAX_LENGTH} printable characters, such as "db"'
        raise InvalidTask("concurrency_key", f"{describe(key)} is not a key", rule)
