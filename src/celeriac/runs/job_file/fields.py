"""One job's fields: all that is wrong with them, or the task they ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from celeriac.errors import InvalidTask
from celeriac.executor.dependencies import BREAK_CYCLE, cycles, format_cycle
from celeriac.runs.job_file.json_text import AsWritten, kind_of
from celeriac.runs.job_file.problem import Problem, shorten
from celeriac.task.task import Secret, Task, describe

FIELDS = (
    "key",
    "command",
    "priority",
    "queue",
    "slots",
    "env",
    "cwd",
    "timeout",
    "grace",
    "retries",
    "retry_delay",
    "on_worker_lost",
    "max_lost",
    "needs",
    "on_need_failed",
)
KNOWN = frozenset(FIELDS)

NEEDS_EXAMPLE = 'write a key, or a list of keys such as ["fetch", "unpack"]'
KEY_EXAMPLE = 'write a string such as "resize-12"'

REMEDIES = {  # where the task's own words are wider than the field
    "priority": "write for example 5",
    "cwd": 'write a directory such as "/tmp"',
}


class Jobs:
    """What is known of one file while it is read: its name, the line that took each key, and who needs what."""

    def __init__(self, file: str, defaults: Mapping[str, Any], *, is_whole: bool = False) -> None:
        """Of a whole file what is needed is looked for at its end, by `check_needs`; else among the lines so far."""
        self.file = file
        self.defaults = defaults
        self.is_whole = is_whole
        self.line_of_key: dict[str, int] = {}
        self.needs_of_key: dict[str, tuple[str, ...]] = {}
        self.has_lines_without_key = False

    def check(self, line: int, values: Mapping[str, object], found: Iterable[Problem] = ()) -> list[Task | Problem]:
        """The one task, or all problems of the line: those found before and those found here."""
        task = None
        problems = list(found)
        if problems or "command" not in values or not values.keys() <= KNOWN:
            problems += self._all_problems(line, values)
        else:
            fields: dict[str, Any] = {"key": str(line)}
            try:
                fields.update((name, convert(name, value)) for name, value in values.items())
                task = Task(**{**self.defaults, **fields})
            except InvalidTask as wrong:
                first = Problem(self.file, line, wrong.field, wrong.problem, wrong.remedy)
                problems = list(self._all_problems(line, values)) or [first]
        key = values.get("key", str(line))
        if isinstance(key, str) and key:
            problems += self._take_key(line, key, given="key" in values)
            if "needs" in values:
                problems += self._take_needs(line, key, values["needs"])
        else:
            self.has_lines_without_key = True
        return [task] if task is not None and not problems else [*problems]

    def _all_problems(self, line: int, values: Mapping[str, object]) -> Iterator[Problem]:
        for name, value in values.items():
            try:
                check_field(name, value)
            except InvalidTask as wrong:
                yield Problem(self.file, line, name, wrong.problem, wrong.remedy)
        if "command" not in values:
            remedy = 'write what to run, for example "gzip -k data.csv"'
            yield Problem(self.file, line, "command", "it is missing", remedy)

    def _take_key(self, line: int, key: str, *, given: bool) -> Iterator[Problem]:
        """The key is this line's from now on, unless another line has it."""
        first = self.line_of_key.setdefault(key, line)
        if first == line:
            return
        shown = describe(AsWritten(key))
        lacks = "" if given else "the line has none, and its number, "
        comma = "" if given else ","
        problem = f"{lacks}{shown}{comma} is the key of line {first} already"
        yield Problem(self.file, line, "key", problem, "give each job a key of its own")

    def _take_needs(self, line: int, key: str, needs: object) -> Iterator[Problem]:
        """What is wrong with the keys themselves, or that a task needs itself, was said already."""
        with suppress(InvalidTask):
            keys = tuple(need for need in keys_needed(needs) if need != key)
            if not self.is_whole:
                yield from self._unknown(line, keys, "no earlier line", "write the job that it names before this one")
            elif self.line_of_key[key] == line:
                self.needs_of_key[key] = keys

    def _unknown(self, line: int, needs: Iterable[str], whose: str, remedy: str) -> Iterator[Problem]:
        for need in needs:
            if need not in self.line_of_key:
                shown = describe(AsWritten(need))
                yield Problem(self.file, line, "needs", f"{shown} is the key of {whose}", remedy)

    def check_needs(self) -> Iterator[Problem]:
        """Of a whole file, once it has been read."""
        if not self.has_lines_without_key:  # or one of those may be the one
            for key, needs in self.needs_of_key.items():
                yield from self._unknown(self.line_of_key[key], needs, "no line", "name the key of a job in this file")
        for cycle in cycles(self.needs_of_key):
            problem = f"tasks need each other in a cycle: {format_cycle(cycle)}"
            yield Problem(self.file, self.line_of_key[str(cycle[0])], "needs", problem, BREAK_CYCLE)


def convert(name: str, value: object) -> object:
    """The value as a task wants it. What the task would let pass, or word too openly, is refused here."""
    match name:
        case "key":
            return _check_key(value)
        case "env":
            return _check_env(value)
        case "needs":
            return keys_needed(value)
        case "command" if isinstance(value, list):
            return tuple(value)
        case _:
            return value


def check_field(name: str, value: object) -> None:
    """Each field is tried on its own, so that a line is told all that is wrong with it."""
    if name not in KNOWN:
        raise InvalidTask(name, "it is no field of a job", nearest(name))
    converted = convert(name, value)
    try:
        _try(name, converted)
    except InvalidTask:  # the same refusal again, with the value shown as the user wrote it
        _try(name, _words_as_written(converted) if name == "command" else AsWritten(value))


def _words_as_written(command: object) -> object:
    if isinstance(command, tuple):
        return tuple(word if isinstance(word, str) else AsWritten(word) for word in command)
    return command if isinstance(command, str) else AsWritten(command)


def _try(name: str, value: object) -> None:
    fields: dict[str, Any] = {"key": "", "command": "true", "id": "", name: value}
    try:
        Task(**fields)
    except InvalidTask as wrong:
        raise InvalidTask(name, wrong.problem, REMEDIES.get(name, wrong.remedy)) from None


def _check_key(key: object, field: str = "key") -> str:
    if isinstance(key, str) and key and "\0" not in key:
        return key
    shown = describe(AsWritten(key))
    if isinstance(key, str):
        raise InvalidTask(field, f"{shown} is not a name", KEY_EXAMPLE)
    number = type(key) in (int, float)
    raise InvalidTask(field, f"{shown} is not a string", f'put it in quotes: "{shown}"' if number else KEY_EXAMPLE)


def keys_needed(needs: object) -> tuple[str, ...]:
    """A list of keys, or one key."""
    if isinstance(needs, str):
        return (_check_key(needs, "needs"),)
    if not isinstance(needs, list | tuple):
        raise InvalidTask("needs", f"{describe(AsWritten(needs))} is not a list of keys", NEEDS_EXAMPLE)
    keys: dict[str, None] = {}
    for need in needs:
        if _check_key(need, "needs") in keys:
            raise InvalidTask("needs", f"{describe(AsWritten(need))} is listed twice", "keep one of them")
        keys[need] = None
    return tuple(keys)


def _check_env(env: object) -> dict[str, str]:
    """No message shows a value, nor what follows a "=": either may be a secret."""
    if not isinstance(env, dict):
        raise InvalidTask("env", f"{kind_of(env)} is not a table", 'write names and values: {"LANG": "C"}')
    for name in getattr(env, "repeated", ()):
        raise InvalidTask("env", f"{_shown_name(name)} is given twice", "keep one of them")
    return {_check_env_name(name): _check_env_value(name, value) for name, value in env.items()}


def _check_env_name(name: str) -> str:
    if not name or "=" in name or "\0" in name:
        raise InvalidTask("env", f"{_shown_name(name)} is not a variable name", 'write for example {"LANG": "C"}')
    return name


def _check_env_value(name: str, value: object) -> str:
    secret = value.get("secret") if isinstance(value, dict) and value.keys() == {"secret"} else None
    text = value if secret is None else secret
    if not isinstance(text, str):
        remedy = f'write "..." or {{"secret": "..."}}, for a number too: {{{_shown_name(name)}: "1"}}'
        raise InvalidTask("env", f"the value of {_shown_name(name)} is not a string", remedy)
    if "\0" in text:
        problem = f"the value of {_shown_name(name)} contains a NUL character"
        raise InvalidTask("env", problem, "remove it: no program can receive one")
    return text if secret is None else Secret(text)


def _shown_name(name: str) -> str:
    before, equals, _ = name.partition("=")
    return describe(AsWritten(f"{before}=..." if equals else name))


@lru_cache(maxsize=64)  # a name misspelt once is misspelt in every line
def nearest(name: str) -> str:
    for match in get_close_matches(shorten(name).lower(), FIELDS, n=1):
        return f'did you mean "{match}"?'
    return f"the fields are {', '.join(FIELDS)}"
