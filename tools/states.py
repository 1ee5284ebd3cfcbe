"""Generate docs/states.md from the table of transitions.

    python tools/states.py [--check]

With `--check`, fail if the page is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from celeriac.task.state import TRANSITIONS, State

PAGE = Path(__file__).parent.parent / "docs" / "states.md"

INTRODUCTION = """# States

`make docs` generates this page from `TRANSITIONS` in `src/celeriac/task/state.py`; `make check` compares them.

A task is in one state at a time, changes its state only as shown here, and ends exactly once. A result that would cause
another transition is ignored. The events of a task name each state that it enters; `publishing` only if the broker did
not confirm it.
"""


def page() -> str:
    return "\n".join([INTRODUCTION, *diagram(), "", *table(), ""])


def diagram() -> list[str]:
    transitions = [f"    {state} --> {after}" for state, follow in TRANSITIONS.items() for after in follow]
    ends = [f"    {state} --> [*]" for state in State if state.is_final]
    return ["```mermaid", "stateDiagram-v2", "    [*] --> waiting", *transitions, *ends, "```"]


def table() -> list[str]:
    rows = [
        f"| {state} | {after} | {when} |" for state, follow in TRANSITIONS.items() for after, when in follow.items()
    ]
    return ["| state | next | when |", "|---|---|---|", *rows]


def main() -> None:
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit("docs/states.md does not match TRANSITIONS; run `make docs`")


if __name__ == "__main__":
    main()
