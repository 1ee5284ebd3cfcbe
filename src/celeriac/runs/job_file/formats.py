"""Find out the format of a job file: from the option, from its extension, or from its first line.

    --format ─► extension ─► first line ─► JSON, TABLE or TEXT, or the problem with the file

Text is the last choice: if a line may belong to a file of another format, it is refused, because it must not run as a
shell command.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from celeriac.runs.job_file.fields import FIELD_TYPES

AUTO = "auto"
FORMATS = (AUTO, "json", "jsonl", "csv", "tsv", "lines", "text")
"""The values of --format. "jsonl" means "json", and "text" means "lines"."""

SEPARATORS = (",", ";", "\t")
BOM = b"\xef\xbb\xbf"
SCRIPT_SIGN = b"#!"  # the begin of a script, whose lines belong together


class Kind(StrEnum):
    """The kind of a job file."""

    JSON = "json"
    TABLE = "table"
    TEXT = "text"


class Layout(Struct, frozen=True):
    """The format of a file."""

    kind: Kind
    separator: str = ","
    """Of the cells of a table, unless its first lines show another one."""

    is_certain: bool = True
    """Whether the option or the extension names the format. Otherwise the first line has decided."""


class Doubt(Struct, frozen=True):
    """A file that must not run as plain text: its problem and the remedy."""

    problem: str
    remedy: str


LAYOUTS = {
    "json": Layout(Kind.JSON),
    "jsonl": Layout(Kind.JSON),
    "csv": Layout(Kind.TABLE),
    "tsv": Layout(Kind.TABLE, "\t"),
    "lines": Layout(Kind.TEXT),
    "text": Layout(Kind.TEXT),
}
FORMAT_OF_EXTENSION = {
    ".json": "json",
    ".jsonl": "json",
    ".jsonlines": "json",
    ".json-lines": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
}
TEXT_EXTENSIONS = frozenset((".txt", ".sh"))
OTHER_EXTENSIONS = frozenset(
    (
        ".bz2",
        ".gz",
        ".html",
        ".ini",
        ".ipynb",
        ".json5",
        ".md",
        ".ods",
        ".parquet",
        ".pickle",
        ".pkl",
        ".pl",
        ".py",
        ".r",
        ".rb",
        ".toml",
        ".xls",
        ".xlsx",
        ".xml",
        ".xz",
        ".yaml",
        ".yml",
        ".zip",
        ".zst",
    )
)
BINARY_SIGNS = (
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"PK\x03\x04", "a spreadsheet or a ZIP archive"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ\0", "compressed by xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
)

SURELY_JSON = rb'\{\s*(["}]|$)|\[\s*([{"\]]|$)'
"""The begin of a line that is no shell command."""

SEPARATOR_LINE = r"(?i)sep=(.)\s*"
"""The first line with which a spreadsheet names the separator."""

PLAIN_CELLS = r"\w+(?:([,;\t])\w+)(?:\1\w+)*\s*"
QUOTED_CELLS = r'"[^"]*"[,;\t]"'
OTHER_SIGNS = (
    (r"---|%YAML|-\s+[\w\"'{\[]|[\w-]+:(\s|$)", "YAML"),
    (r"<\?xml|<!DOCTYPE|<!--|<\w+>", "XML or HTML"),
)

SAVE_AS = "save it as JSON, as CSV, or as plain text with one command a line"
NAME_FORMAT = "give --format csv, or --format lines if each line is a shell command"
NAME_LINES = "if each line is a shell command, give --format lines"


def layout_of(format: str, name: str, head: bytes) -> Layout | Doubt:
    """Return the layout of a file. `head` is its first line that is neither blank nor a comment, or a part of it."""
    extension = Path(name).suffix.lower()
    named = FORMAT_OF_EXTENSION.get(extension) if format == AUTO else format
    if named is not None:
        layout = LAYOUTS[named]
        return layout if layout.kind is Kind.TEXT else encoding_doubt_of(head) or layout
    if extension in OTHER_EXTENSIONS:
        return Doubt(f"{extension} is not a format of jobs", f"{SAVE_AS}; {NAME_LINES}")
    return layout_of_line(head.removeprefix(BOM), is_named_text=extension in TEXT_EXTENSIONS)


def layout_of_values(format: str, name: str, head: bytes) -> Layout | Doubt:
    """Return the layout of a file of values for a template. Only its name tells: a line may look like anything."""
    is_named = format != AUTO or Path(name).suffix.lower() in FORMAT_OF_EXTENSION
    return layout_of(format if is_named else "lines", name, head)


def layout_of_line(head: bytes, *, is_named_text: bool) -> Layout | Doubt:
    """Return the layout that the first line shows. The extension may say that the file is text."""
    if (doubt := encoding_doubt_of(head)) is not None:
        return doubt
    if head.startswith(SCRIPT_SIGN):
        return Doubt("it is a script, and its lines are no jobs", f"run it with celeriac run -- FILE; {NAME_LINES}")
    begin = head.lstrip()
    if re.match(SURELY_JSON, begin) or (begin[:1] in (b"{", b"[") and not is_named_text):
        return Layout(Kind.JSON, is_certain=False)
    line = begin.decode("utf-8", "replace").rstrip("\r\n")
    if is_header(line, fewest_cells=2 if is_named_text else 1):
        return Layout(Kind.TABLE, is_certain=False)
    doubt = None if is_named_text else doubt_of(line)
    return doubt or Layout(Kind.TEXT, is_certain=False)


def encoding_doubt_of(head: bytes) -> Doubt | None:
    """Return the problem with a file that is no UTF-8 text."""
    for sign, kind in BINARY_SIGNS:
        if head.startswith(sign):
            return Doubt(f"it is {kind}", "save it as UTF-8 text")
    return None


def is_header(line: str, *, fewest_cells: int = 1) -> bool:
    """Return whether a line names the separator of a table, or has the names of its columns."""
    if re.fullmatch(SEPARATOR_LINE, line):
        return True
    return any(
        len(cells) >= fewest_cells and ("command" in cells or sum(cell in FIELD_TYPES for cell in cells) > 1)
        for cells in (column_names(line, separator) for separator in SEPARATORS)
    )


def doubt_of(line: str) -> Doubt | None:
    """Return the problem with a line that may belong to a file of another format."""
    if re.fullmatch(PLAIN_CELLS, line) or re.match(QUOTED_CELLS, line):
        return Doubt("the first line may be that of a table, but it names no field of a job", NAME_FORMAT)
    for sign, kind in OTHER_SIGNS:
        if re.match(sign, line):
            return Doubt(f"it looks like {kind}, which is not a format of jobs", f"{SAVE_AS}; {NAME_LINES}")
    return None


def separator_of(line: str, default: str, names: Collection[str] = FIELD_TYPES) -> str:
    """Return the separator with which a header names the most fields, or others of these names."""
    known = {
        separator: sum(name in names for name in column_names(line, separator)) for separator in (default, *SEPARATORS)
    }
    return max(known, key=lambda separator: known[separator])


def column_names(line: str, separator: str) -> list[str]:
    """Return the names in a header that has no line breaks."""
    import csv

    try:
        return [field_name(cell) for cell in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error:
        return []


def field_name(cell: str) -> str:
    """Return the field that a cell of a header names: `Retry Delay` is `retry_delay`. Other names stay as they are."""
    name = cell.strip()
    field = re.sub(r"[ -]+", "_", name.lower())
    return field if field in FIELD_TYPES else name
