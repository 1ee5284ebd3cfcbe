"""Tables fit the width of the terminal, and lose nothing."""

from __future__ import annotations

import re
import subprocess
import sys

from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from celeriac.cli.tables import fill, fold, table_lines

HEADINGS = ("key", "tasks", "file")
CELLS = st.text(st.sampled_from("ab /-é名"), max_size=60).map(str.strip)
ROWS = st.lists(st.tuples(CELLS, st.integers(0, 10**7).map(str), CELLS), max_size=6)


def letters(text: str) -> str:
    return re.sub(r"\s", "", text)


@given(ROWS, st.integers(20, 120))
@example([("k" * 50, "1", "/f" * 30)], 30)
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut_off(rows, width):
    lines = [*table_lines(HEADINGS, rows, width=width, foldable=("key", "file"), right=("tasks",))]
    assert max(map(cell_len, lines), default=0) <= width
    shown = letters("".join(lines))
    for row in rows:
        assert all(sum(map(shown.count, set(letters(cell)))) >= len(letters(cell)) for cell in row)


def test_a_table_that_fits_is_aligned():
    rows = [("a", "1", "/srv/a.txt"), ("long key", "20", "/b")]
    assert [*table_lines(HEADINGS, rows, width=80, foldable=("file",), right=("tasks",))] == [
        "key       tasks  file",
        "a             1  /srv/a.txt",
        "long key     20  /b",
    ]


def test_a_column_is_folded_before_the_table_becomes_records():
    rows = [("a", "1", "/a/long/path/to/jobs.txt")]
    assert [*table_lines(HEADINGS, rows, width=26, foldable=("file",))] == [
        "key  tasks  file",
        "a    1      /a/long/path/t",
        "            o/jobs.txt",
    ]
    assert [*table_lines(HEADINGS, [*rows, ("b", "2", "")], width=22, foldable=("file",))] == [
        "key    a",
        "tasks  1",
        "file   /a/long/path/to",
        "       /jobs.txt",
        "",
        "key    b",
        "tasks  2",
    ]
    assert [*table_lines(HEADINGS, rows, width=22, foldable=("file",), otherwise=["in words"])] == ["in words"]


def test_without_a_terminal_the_width_is_not_limited():
    rows = [("a", "1", "/long" * 40)]
    assert [*table_lines(HEADINGS, rows, width=None, foldable=("file",))][1] == "a    1      " + "/long" * 40


@given(CELLS, st.integers(2, 30))
def test_a_folded_text_keeps_its_letters(text, width):
    lines = fold(text, width)
    assert letters("".join(lines)) == letters(text)
    assert max(map(cell_len, lines)) <= width


@given(st.lists(CELLS), st.integers(20, 60))
def test_filled_lines_keep_their_parts(parts, width):
    lines = [*fill(parts, width, indent="  ")]
    assert max(map(cell_len, lines), default=0) <= width
    assert letters("".join(lines)) == letters("".join(parts))


def test_the_commands_of_tests_inherit_no_width():
    """Not even the one that a terminal exports, or that readline sets for child processes alone."""
    code = "import os; print({'COLUMNS', 'LINES'} & os.environ.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
