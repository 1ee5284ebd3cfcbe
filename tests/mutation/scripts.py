"""Make mutants of the Lua scripts of Redis: each has one line changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from celeriac.backend.claims import redis

NAMES = ("CLAIM", "RELEASE", "RENEW", "END_LEASE", "DECLARE_DEAD", "FENCE", "CANCEL", "READ_HASHES", "CHECK")
PARTS = ("HEAL", "STORE")
"""Functions that several scripts begin with."""

SWAPS = (
    (r" == ", " ~= "),
    (r" ~= ", " == "),
    (r" and ", " or "),
    (r" or ", " and "),
    (r"\bnot ", ""),
    (r" < ", " <= "),
    (r" > ", " >= "),
    (r"\breturn 0\b", "return 1"),
    (r"\breturn 1\b", "return 0"),
    (r"(?<=[(,] )1(?=\))|(?<= )3600(?=\))", "2"),
    (r" \* 0\.9", " / 0.9"),
    (r"(?<=if )(?!fails)[^\n]*(?= then)", "true"),
    (r"(?<=if )(?!fails)[^\n]*(?= then)", "false"),
    (r"(?<=if )fails\([^\n]*(?= then)", "not \\g<0>"),
)
"""Each a pattern, and what replaces one occurrence of it."""

STATEMENT = re.compile(r"\s*(redis\.call\(|heal\(|count\(|table\.insert\(|store\(|hashes\[i\] = ).*")
"""A line that a mutant leaves out."""

Mutation = tuple[str, int, str]
"""The name of a constant, the number of its mutant, and what is changed."""


def text_of(name: str) -> str:
    """Return a script without the functions of others that it begins with."""
    text: str = getattr(redis, name)
    for part in PARTS if name in NAMES else ():
        text = text.replace(getattr(redis, part), "")
    return text


def changes_of(text: str) -> Iterator[tuple[str, str]]:
    """Yield each changed text, and what is changed."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        new_lines = [""] if STATEMENT.fullmatch(line) else []
        for pattern, new in SWAPS:
            new_lines += [
                line[: match.start()] + match.expand(new) + line[match.end() :] for match in re.finditer(pattern, line)
            ]
        for new_line in new_lines:
            changed = [*lines[:number], new_line, *lines[number + 1 :]]
            yield "\n".join(changed) + "\n", f"{line.strip()} → {new_line.strip() or 'nothing'}"


def mutations() -> list[Mutation]:
    return [
        (name, number, change)
        for name in (*PARTS, *NAMES)
        for number, (_, change) in enumerate(changes_of(text_of(name)))
    ]


def apply(mutation: Mutation) -> None:
    """Replace a script in this process, in each that begins with it."""
    name, chosen, _ = mutation
    old = text_of(name)
    new = next(text for number, (text, _) in enumerate(changes_of(old)) if number == chosen)
    for each in NAMES:
        setattr(redis, each, getattr(redis, each).replace(old, new))
