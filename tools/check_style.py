"""Fail for retired names, for banned words in prose, for docstrings that begin badly, and for files that are too long.

    tools/check_style.py [PATH...]

Each finding is one line: path, line number, and what to write instead. `docs/glossary.md` has the words to use.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 400
RETIRED = re.compile(
    r"\b(desks?|trays?|shelf|keepers?|wardens?|guardians?|recalls|whereabouts|reigns?|bury|buried|forgetter|knocks?|lanes?)\b",
    re.I,
)
RETIRED_NAMES = frozenset(
    "Moves Sending Outcomes Recalls Books Page Standing Remembered Needs Held Freed Searches Whereabouts Search Missing"
    " LeaseWatch Leased Desk Tray Asked Cancelled Explained Refused Fate WaitsFor Serving Served Tale Life Serve Reign"
    " Departures Recall BrokerCalls CallOf Form Hole Blank StoredForm FramesForm Outage Telling Asking Hints Bell"
    " Forgetter Keeper Card Warden Hands ThreadHands ChildHands Lane Guard LastingRequest Handed SqlBook Shelf Beside"
    " InTheClear Said RunSeen TaskSeen Wanted Kept HowToRun Wiring WORD_OF_LIFE BrokerAway BackendAway LedgerAway"
    " ImpossibleMove take_duty tell_arrivals say_alive has_begun new_tally write_down go_on_with back_in_line let_go"
    " be_impatient with_driver begin_anew carried_out LOOK PATIENCE PAUSE CHUNK PIECE BREATH SOON SURE PARTING".split()
)
PROSE = re.compile(r"\b(nobody|somebody|answers whether|in no place|called back|gone on with|word of life)\b", re.I)
DOCSTRING = re.compile(r"\b(who (has|is|was|comes)|whoever)\b", re.I)
FIRST_WORD = frozenset("Answers Of What Who Whoever Those Unless It Said Told".split())
NOUNS_IN_S = frozenset("Address Process Pass Redis Celery's Always This Across Kubernetes Access Discuss Alias".split())


def main(paths: list[str]) -> int:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *paths], capture_output=True, text=True, check=True
    )
    findings = [finding for name in listed.stdout.splitlines() if Path(name).exists() for finding in check(Path(name))]
    print("\n".join(findings) or "style: nothing found")
    return bool(findings)


def check(path: Path) -> Iterator[str]:
    if path.suffix not in (".py", ".md") or path.name in ("CHANGELOG.md", Path(__file__).name):
        return
    text = path.read_text()
    for number, line in enumerate(text.splitlines(), 1):
        for word in (*RETIRED.finditer(line), *PROSE.finditer(line)):
            yield f"{path}:{number}: {word[0]!r} is not in the glossary"
    if path.suffix == ".py":
        yield from check_code(path, ast.parse(text), text.count("\n"))


def check_code(path: Path, tree: ast.Module, lines: int) -> Iterator[str]:
    if lines > MAX_LINES and path.parts[0] == "src":
        yield f"{path}:{MAX_LINES}: {lines} lines; split it below {MAX_LINES}"
    for node in ast.walk(tree):
        name = getattr(node, "name", None) or getattr(node, "attr", None) or getattr(node, "id", None)
        if isinstance(name, str) and name in RETIRED_NAMES:
            yield f"{path}:{getattr(node, 'lineno', 0)}: {name} is a retired name"
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
            yield from check_docstring(f"{path}:{getattr(node, 'lineno', 1)}", node, text)


def check_docstring(place: str, node: ast.AST, text: str) -> Iterator[str]:
    first = (text.split() or [""])[0]
    for found in DOCSTRING.finditer(text):
        yield f"{place}: {found[0]!r}: name the thing instead"
    if first in FIRST_WORD:
        yield f"{place}: a docstring does not begin with {first!r}"
    if isinstance(node, ast.FunctionDef):
        decorators = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
        if first == "Whether" and not decorators & {"property", "cached_property"}:
            yield f"{place}: write 'Return whether'"
        if (
            re.fullmatch(r"[A-Z][a-z]+s", first)
            and first not in NOUNS_IN_S
            and not decorators & {"property", "fixture"}
        ):
            yield f"{place}: {first!r}: begin with an imperative"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
