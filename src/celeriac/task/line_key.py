"""The key of a job that gives none: the number of its line."""

from __future__ import annotations

import re

LINE_KEY = re.compile(r"([1-9]\d{0,17})(?:-(\d{1,17}))?")
"""The number of a line; "3-2" is the job of line 3 in a file that has changed, where another job has the key "3"."""


def is_line_key(key: object) -> bool:
    """Return whether a key is only the number of a line, which says nothing to a person."""
    return isinstance(key, str) and LINE_KEY.fullmatch(key) is not None
