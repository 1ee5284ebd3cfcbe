"""Make commands from a template and the values of a row, a line, arguments or a grid.

    "gzip -c {file} > {/}.gz"  ─►  parts: text and placeholders  ─►  one command for each set of values

A value is quoted for the shell, so that it is always one word, unless the placeholder begins with "raw:". Braces that
the shell or another program may mean, as in `${HOME}`, `{a,b}` and `awk '{print $1}'`, stay as they are.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from celeriac.errors import InvalidConfig
from celeriac.runs.job_file.problem import shorten
from celeriac.task.task import DEFAULT_QUEUE, NO_PRIORITY, ONE

INPUT = ""
"""The name of the value of a line or an argument: the placeholder is {}."""

NUMBER = "#"
"""The name of the number of the job, counted from 1."""

PLACEHOLDER = re.compile(
    r"\{\{(?P<escaped>[^{}\n]*)\}\}|(?<!\$)\{(?P<raw>raw:)?(?P<name>[^{}\n]*?)(?P<form>//|/\.|/|\.)?\}"
)
NAME = re.compile(r"[^\W\d]\w*(?:[ -]\w+)*|\d+|#|")
"""The names that can only be meant as placeholders."""

RESERVED = re.compile(r"[{}\n]")
"""What the name of a value cannot contain, to be used in a template."""

SHOWN_FIELDS = (
    *("key", "priority", "queue", "slots", "cpus", "memory", "gpus"),
    *("cwd", "timeout", "grace", "retries", "retry_delay", "max_lost"),
)
"""The fields of a job that a template may use."""

FIELD_DEFAULTS = {"priority": NO_PRIORITY, "queue": DEFAULT_QUEUE, "slots": ONE}
MAX_NAMES_SHOWN = 12


Values: TypeAlias = Mapping[str, str]


class JobTemplate(Struct, frozen=True, kw_only=True):
    """How the command, and the key, of each job are made."""

    command: str
    key: str | None = None
    """The template of the keys; None for keys from the column "key", or the numbers of the lines."""

    lists: tuple[ValueList, ...] = ()
    """The values of all jobs, one for each combination; none if a file has them."""


class ValueList(Struct, frozen=True, kw_only=True):
    """Values of one placeholder."""

    values: tuple[str, ...]
    name: str | None = None
    """The placeholder; None for one that its position names: {1} is the first list, {2} the second."""

    is_linked: bool = False
    """Whether its values go with those of the list before: the first with the first. Else all combinations are made."""


class Placeholder(Struct, frozen=True):
    """A part of a template that a value replaces."""

    text: str
    name: str
    form: str
    is_raw: bool


class UnknownPlaceholder(ValueError):
    """A placeholder that no value has. The message is the problem, `remedy` what to do."""

    def __init__(self, placeholder: Placeholder, names: Sequence[str]) -> None:
        super().__init__(f"{shorten(placeholder.text)} names no value")
        shown = ", ".join(f"{{{shorten(name)}}}" for name in names[:MAX_NAMES_SHOWN])
        hidden = len(names) - MAX_NAMES_SHOWN
        there_are = f"{shown}{f' and {hidden} more' if hidden > 0 else ''}"
        self.remedy = f"there are {there_are}; for braces that are no placeholder write {{{placeholder.text}}}"


FORMS: Mapping[str, Callable[[str], str]] = {
    "": str,
    ".": lambda value: os.path.splitext(value)[0],  # noqa: PTH122 - a value is any text
    "/": lambda value: os.path.basename(value.rstrip("/")),  # noqa: PTH119
    "//": lambda value: os.path.dirname(value.rstrip("/")) or (value[:1] if value.startswith("/") else "."),  # noqa: PTH120
    "/.": lambda value: os.path.splitext(os.path.basename(value.rstrip("/")))[0],  # noqa: PTH119, PTH122
}
"""What is taken of a path."""


class Pattern:
    """A template that was taken apart."""

    def __init__(self, template: str, *, is_quoted: bool) -> None:
        """`is_quoted` says whether values become words of the shell."""
        self._parts = list(parts_of(template))
        self._is_quoted = is_quoted

    def fill(self, values: Values) -> str:
        """Return the text with the values. Raise `UnknownPlaceholder`."""
        return "".join(part if isinstance(part, str) else self._filled(part, values) for part in self._parts)

    def _filled(self, part: Placeholder, values: Values) -> str:
        whole = part.name + part.form
        if whole in values:  # a column whose name ends with such a sign
            words = [values[whole]]
        elif part.name in values:
            words = [FORMS[part.form](values[part.name])]
        elif part.name == INPUT and "1" in values:  # all arguments
            words = [FORMS[part.form](values[name]) for name in values if name.isdecimal()]
        elif NAME.fullmatch(part.name):
            raise UnknownPlaceholder(part, [name for name in values if not RESERVED.search(name)])
        else:
            return part.text
        return " ".join(map(shlex.quote, words) if self._is_quoted and not part.is_raw else words)

    @property
    def names(self) -> frozenset[str]:
        """The names that the template uses."""
        found = (part.name for part in self._parts if isinstance(part, Placeholder))
        return frozenset(name for name in found if NAME.fullmatch(name))


def parts_of(template: str) -> Iterator[str | Placeholder]:
    end = 0
    for match in PLACEHOLDER.finditer(template):
        yield template[end : match.start()]
        end = match.end()
        escaped = match["escaped"]
        if escaped is None:
            yield Placeholder(match[0], match["name"].strip(), match["form"] or "", match["raw"] is not None)
        else:
            is_name = NAME.fullmatch(escaped.removeprefix("raw:").rstrip("./"))
            yield f"{{{escaped}}}" if is_name else match[0]
    yield template[end:]


class TemplateFiller:
    """Makes the fields of each job of one file, or of arguments."""

    def __init__(self, template: JobTemplate, defaults: Mapping[str, Any], fields: frozenset[str]) -> None:
        """`fields` are the names of the fields of a job. Raises `InvalidConfig`."""
        self._command = Pattern(template.command, is_quoted=True)
        self._key = None if template.key is None else Pattern(template.key, is_quoted=False)
        self._fields = fields - {"command"}
        self._defaults = {**FIELD_DEFAULTS, **defaults}
        check_template(template, self._command, self._key)

    def check_names(self, names: Iterable[str]) -> None:
        """Raise `UnknownPlaceholder` for a placeholder that no job has, if each has just these names."""
        self.fill(1, "1", dict.fromkeys(names, ""))

    @property
    def names(self) -> frozenset[str]:
        """The names that the templates use."""
        return self._command.names | (frozenset() if self._key is None else self._key.names)

    def fill(self, number: int, own_key: str, values: Mapping[str, object]) -> dict[str, object]:
        """Return the fields of a job, of its values: fields, and others. Raise `UnknownPlaceholder`."""
        fields = {name: value for name, value in values.items() if name in self._fields}
        given = {name: shown(value) for name, value in values.items() if name not in self._fields}
        given[NUMBER] = str(number)
        for name in SHOWN_FIELDS:
            if (value := fields.get(name, self._defaults.get(name))) is not None:
                given.setdefault(name, shown(value))
        if self._key is not None:
            fields["key"] = self._key.fill(given)
        given["key"] = shown(fields.get("key", own_key))
        fields["command"] = self._command.fill(given)
        return fields


def shown(value: object) -> str:
    """Return a value as it stands in a command."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def check_template(template: JobTemplate, command: Pattern, key: Pattern | None) -> None:
    """Raise `InvalidConfig` for a template that makes the same for all jobs."""
    if not template.command.strip():
        raise InvalidConfig("--template", "it is empty", "write for example 'gzip -k {}'")
    if not command.names:
        remedy = "write {} for the value of a line or an argument, or {NAME} for that of a column"
        raise InvalidConfig("--template", f"{shorten(template.command)!r} has no placeholder", remedy)
    if key is not None and not key.names:
        remedy = "each job needs its own: write for example '{}' or 'job-{#}'"
        raise InvalidConfig("--key", f"{shorten(str(template.key))!r} has no placeholder", remedy)
