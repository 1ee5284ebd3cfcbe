"""Draws docs/states.md from the table of moves: `python tools/states.py`, or `--check` that it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from celeriac.task.state import TRANSITIONS, State

PAGE = Path(__file__).parent.parent / "docs" / "states.md"

INTRODUCTION = """# States

Drawn from `MOVES` in `src/celeriac/task/state.py` by `make docs`; `make check` fails when it is out of date.

A task is in one state at a time, moves only as drawn here, and ends exactly once. An answer from outside that would be
another move is ignored. The events of a task name each state it enters, `publishing` only when nobody could say whether
the broker has it.
"""


def page() -> str:
    return "\n".join([INTRODUCTION, *diagram(), "", *table(), ""])


def diagram() -> list[str]:
    moves = [f"    {state} --> {after}" for state, follow in TRANSITIONS.items() for after in follow]
    ends = [f"    {state} --> [*]" for state in State if state.is_final]
    return ["```mermaid", "stateDiagram-v2", "    [*] --> waiting", *moves, *ends, "```"]


def table() -> list[str]:
    rows = [
        f"| {state} | {after} | {when} |" for state, follow in TRANSITIONS.items() for after, when in follow.items()
    ]
    return ["| state | next | when |", "|---|---|---|", *rows]


def main() -> None:
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit("docs/states.md is not what MOVES says; run `make docs`")


if __name__ == "__main__":
    main()
