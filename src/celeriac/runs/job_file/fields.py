"""Check the fields of one job: return its task, or all problems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, get_type_hints

from celeriac.errors import InvalidTask
from celeriac.executor.dependencies import BREAK_CYCLE, cycles, format_cycle
from celeriac.runs.job_file.json_text import AsWritten, kind_of
from celeriac.runs.job_file.problem import Problem, shorten
from celeriac.task.task import Secret, Task, describe

if TYPE_CHECKING:
    from celeriac.runs.job_file.template import TemplateFiller

INTERNAL_FIELDS = ("id", "attempt", "lost")
"""The fields of `Task` that the executor sets."""

FIELD_TYPES = {name: hint for name, hint in get_type_hints(Task).items() if name not in INTERNAL_FIELDS}
FIELDS = tuple(FIELD_TYPES)

NEEDS_EXAMPLE = 'write a key, or a list of keys such as ["fetch", "unpack"]'
KEY_EXAMPLE = 'write a string such as "resize-12"'

MOMENTS = ("not_before", "deadline")
"""The fields that are times: texts in a file, and from there on seconds since the epoch."""

REMEDIES = {  # for fields of a job whose remedy differs from that of `Task`
    "priority": "write for example 5",
    "cwd": 'write a directory such as "/tmp"',
}


OTHER_NAMES = {
    "key": ("name", "id", "job", "task", "sample"),
    "command": ("cmd", "run", "script", "shell"),
    "cwd": ("dir", "directory", "folder", "workdir"),
    "needs": ("after", "depends", "depends_on", "dependencies", "requires"),
    "cpus": ("cores", "cpu", "threads", "ncpus"),
    "memory": ("mem", "ram"),
    "gpus": ("gpu", "ngpus"),
    "artifacts": ("outputs", "results"),
    "not_before": ("at", "begin", "start", "start_after", "eta"),
    "deadline": ("expires", "start_before", "until"),
}
"""What other tools call a field."""


class JobChecker:
    """Checks the jobs of one file, and records their keys and needs."""

    def __init__(
        self,
        file: str,
        defaults: Mapping[str, Any],
        *,
        is_whole: bool = False,
        template: TemplateFiller | None = None,
    ) -> None:
        """`defaults` are fields for jobs that do not set them. With a template, what is read are its values.

        The needs of a whole file are checked at its end, by `check_needs`. Otherwise each job may only need jobs of
        earlier lines.
        """
        self.file = file
        self.defaults = defaults
        self.is_whole = is_whole
        self.template = template
        self._filled = 0
        """How many jobs the template has made."""

        self.line_of_key: dict[str, int] = {}
        self.needs_of_key: dict[str, tuple[str, ...]] = {}
        self.numbered_keys: set[str] = set()
        """The keys of the jobs that give none."""

        self.has_lines_without_key = False

    def check(
        self, line: int, values: Mapping[str, object], known: Iterable[Problem] = (), own_key: str | None = None
    ) -> list[Task | Problem]:
        """Return the task of a line, or all its problems: the `known` problems, and the problems of its fields.

        `own_key` is the key of a job that gives none, if it is not the number of the line.
        """
        task, own_key = None, own_key or str(line)
        problems = list(known)
        if self.template is not None:
            values = self._fill(line, values, problems, own_key, self.template)
        if problems or "command" not in values or not values.keys() <= FIELD_TYPES.keys():
            problems += self._field_problems(line, values)
        else:
            fields: dict[str, Any] = {"key": own_key}
            try:
                fields.update((name, convert(name, value)) for name, value in values.items())
                task = Task(**{**self.defaults, **fields})
            except InvalidTask as error:
                task_problem = Problem(self.file, line, error.field, error.problem, error.remedy)
                problems = list(self._field_problems(line, values)) or [task_problem]
        key = values.get("key", own_key)
        if "key" not in values:
            self.numbered_keys.add(own_key)
        if isinstance(key, str) and key:
            problems += self._register_key(line, key, is_given="key" in values)
            if "needs" in values:
                problems += self._register_needs(line, key, values["needs"])
        else:
            self.has_lines_without_key = True
        return [task] if task is not None and not problems else [*problems]

    def check_command(self, line: int, command: str) -> list[Task | Problem]:
        """Return the task of a line that is a shell command, or all its problems."""
        if self.template is not None:
            return self.check(line, {"": command})
        key = str(line)
        if key in self.line_of_key:
            return self.check(line, {"command": command})
        try:
            task = Task(key=key, command=command, **self.defaults)
        except InvalidTask:
            return self.check(line, {"command": command})
        self.line_of_key[key] = line
        self.numbered_keys.add(key)
        return [task]

    def names_problem(self, line: int | None, names: Iterable[str]) -> Problem | None:
        """Return the problem of a template that uses another name, if each job has values of these names."""
        if self.template is None:
            return None
        from celeriac.runs.job_file.template import UnknownPlaceholder  # late: most runs have no template

        try:
            self.template.check_names(names)
        except UnknownPlaceholder as error:
            return Problem(self.file, line, "template", str(error), error.remedy)
        return None

    def _fill(
        self, line: int, values: Mapping[str, object], problems: list[Problem], own_key: str, template: TemplateFiller
    ) -> dict[str, object]:
        """Return the fields that the template makes. Add its problems."""
        from celeriac.runs.job_file.template import UnknownPlaceholder  # late: most runs have no template

        self._filled += 1
        for name, value in values.items():
            if name not in FIELD_TYPES and isinstance(value, dict | list):
                problem = f"{kind_of(value)} is not a value of a template"
                problems.append(Problem(self.file, line, name, problem, "write a text or a number"))
        try:
            return template.fill(self._filled, own_key, values)
        except UnknownPlaceholder as error:
            problems.append(Problem(self.file, line, "template", str(error), error.remedy))
            return {**{name: value for name, value in values.items() if name in FIELD_TYPES}, "command": "any"}

    def check_needs(self) -> Iterator[Problem]:
        """Yield the problems with the needs of a whole file, once all its lines were checked."""
        if not self.has_lines_without_key:  # otherwise a need may be the key of such a line
            for key, needs in self.needs_of_key.items():
                yield from self._unknown_needs(
                    self.line_of_key[key], needs, "any line", "name the key of a job in this file"
                )
        for cycle in cycles(self.needs_of_key):
            problem = f"tasks need each other in a cycle: {format_cycle(cycle)}"
            yield Problem(self.file, self.line_of_key[str(cycle[0])], "needs", problem, BREAK_CYCLE)

    def _field_problems(self, line: int, values: Mapping[str, object]) -> Iterator[Problem]:
        for name, value in values.items():
            try:
                check_field(name, value)
            except InvalidTask as error:
                yield Problem(self.file, line, name, error.problem, error.remedy)
        if "command" not in values:
            remedy = 'write what to run, for example "gzip -k data.csv"'
            yield Problem(self.file, line, "command", "it is missing", remedy)

    def _register_key(self, line: int, key: str, *, is_given: bool) -> Iterator[Problem]:
        """Record the key of a line. Yield a problem if an earlier line has the same key."""
        if (first_line := self.line_of_key.get(key)) is None:
            self.line_of_key[key] = line
            return
        shown = describe(AsWritten(key))
        subject = shown if is_given else f"the line has no key, and its number, {shown},"
        yield Problem(
            self.file, line, "key", f"{subject} is already the key of line {first_line}", "give each job its own key"
        )

    def _register_needs(self, line: int, key: str, needs: object) -> Iterator[Problem]:
        """Record the needs of a line. Yield a problem for each unknown key, unless the file is checked at its end."""
        with suppress(InvalidTask):  # `check_field` reports bad needs, and `Task` a task that needs itself
            keys = tuple(need for need in keys_needed(needs) if need != key)
            if not self.is_whole:
                remedy = "move the job with that key before this one"
                yield from self._unknown_needs(line, keys, "an earlier line", remedy)
            elif self.line_of_key[key] == line:
                self.needs_of_key[key] = keys

    def _unknown_needs(self, line: int, needs: Iterable[str], place: str, remedy: str) -> Iterator[Problem]:
        for need in needs:
            if need not in self.line_of_key:
                shown = describe(AsWritten(need))
                yield Problem(self.file, line, "needs", f"{shown} is not the key of {place}", remedy)


def convert(name: str, value: object) -> object:
    """Return the value in the form that `Task` needs.

    Raise `InvalidTask` for bad values that `Task` would accept, or would show in full.
    """
    match name:
        case "key":
            return check_key(value)
        case "env":
            return check_env(value)
        case "needs":
            return keys_needed(value)
        case "tags":
            from celeriac.task.tags import parse_tags  # late: few jobs have tags

            return parse_tags(value, shown=AsWritten)
        case "artifacts":
            from celeriac.task.artifacts import parse_artifacts  # late: few jobs have artifacts

            return parse_artifacts(value, shown=AsWritten)
        case "stdin" if isinstance(value, dict):
            return check_secret_stdin(value)
        case "command" if isinstance(value, list):
            return tuple(value)
        case "not_before" | "deadline" if value is not None:
            return read_moment(name, value)
        case _:
            return value


def read_moment(name: str, value: object) -> float:
    """Return a time as seconds since the epoch. Raise `InvalidTask`."""
    from celeriac.task.moment import to_moment  # late: most jobs have no times

    try:
        return to_moment(name, value)
    except InvalidTask:  # raise it again, with the value as the user wrote it
        return to_moment(name, AsWritten(value))


def check_field(name: str, value: object) -> None:
    """Raise `InvalidTask` for a bad field. Each field is checked alone, so that all problems of a line are found."""
    if name not in FIELD_TYPES:
        raise InvalidTask(name, "it is not a field of a job", nearest_field(name))
    converted = convert(name, value)
    try:
        try_field(name, converted)
    except InvalidTask:
        if name == "stdin" and isinstance(converted, str):  # it may be secret, or long
            raise
        # Raise it again, with the value as the user wrote it.
        try_field(name, arguments_as_written(converted) if name == "command" else AsWritten(value))


def try_field(name: str, value: object) -> None:
    """Raise `InvalidTask` if `Task` refuses the value."""
    fields: dict[str, Any] = {"key": "", "command": "true", "id": "any", name: value}
    try:
        Task(**fields)
    except InvalidTask as error:
        raise InvalidTask(name, error.problem, REMEDIES.get(name, error.remedy)) from None


def arguments_as_written(command: object) -> object:
    if isinstance(command, tuple):
        return tuple(argument if isinstance(argument, str) else AsWritten(argument) for argument in command)
    return command if isinstance(command, str) else AsWritten(command)


def check_key(key: object, field: str = "key") -> str:
    """Return the key. Raise `InvalidTask` if it is not one."""
    if isinstance(key, str) and key and "\0" not in key:
        return key
    shown = describe(AsWritten(key))
    if isinstance(key, str):
        raise InvalidTask(field, f"{shown} is not a name", KEY_EXAMPLE)
    is_number = type(key) in (int, float)
    raise InvalidTask(field, f"{shown} is not a string", f'put it in quotes: "{shown}"' if is_number else KEY_EXAMPLE)


def keys_needed(needs: object) -> tuple[str, ...]:
    """Return the keys in a list, or a single key. Raise `InvalidTask` for other values."""
    if isinstance(needs, str):
        return (check_key(needs, "needs"),)
    if not isinstance(needs, list | tuple):
        raise InvalidTask("needs", f"{describe(AsWritten(needs))} is not a list of keys", NEEDS_EXAMPLE)
    keys: dict[str, None] = {}
    for need in needs:
        if check_key(need, "needs") in keys:
            raise InvalidTask("needs", f"{describe(AsWritten(need))} is listed twice", "keep one of them")
        keys[need] = None
    return tuple(keys)


def check_env(env: object) -> dict[str, str]:
    """Return the environment. Raise `InvalidTask`, which shows no value and no text after a "=": it may be a secret."""
    if not isinstance(env, dict):
        raise InvalidTask("env", f"{kind_of(env)} is not a table", 'write names and values: {"LANG": "C"}')
    for name in getattr(env, "repeated", ()):
        raise InvalidTask("env", f"{shown_variable(name)} is given twice", "keep one of them")
    return {check_variable(name): check_variable_value(name, value) for name, value in env.items()}


def check_variable(name: str) -> str:
    if not name or "=" in name or "\0" in name:
        raise InvalidTask("env", f"{shown_variable(name)} is not a variable name", 'write for example {"LANG": "C"}')
    return name


def check_variable_value(name: str, value: object) -> str:
    secret = value.get("secret") if isinstance(value, dict) and value.keys() == {"secret"} else None
    text = value if secret is None else secret
    if not isinstance(text, str):
        remedy = f'write "..." or {{"secret": "..."}}, for a number too: {{{shown_variable(name)}: "1"}}'
        raise InvalidTask("env", f"the value of {shown_variable(name)} is not a string", remedy)
    if "\0" in text:
        problem = f"the value of {shown_variable(name)} contains a NUL character"
        raise InvalidTask("env", problem, "remove it: no program can receive one")
    return text if secret is None else Secret(text)


def check_secret_stdin(value: Mapping[str, object]) -> Secret:
    """Return the secret text. Raise `InvalidTask`, which shows nothing of it."""
    secret = value.get("secret")
    if value.keys() != {"secret"} or not isinstance(secret, str):
        raise InvalidTask("stdin", "an object is not a text", 'write "..." or {"secret": "..."}')
    return Secret(secret)


def shown_variable(name: str) -> str:
    """Return the name for a message, without text after a "=": that may be a secret value."""
    variable, equals, _ = name.partition("=")
    return describe(AsWritten(f"{variable}=..." if equals else name))


@lru_cache(maxsize=64)  # a misspelt name often occurs in every line
def nearest_field(name: str) -> str:
    """Return a remedy for an unknown field: the field that the user probably meant, or all fields."""
    for field, others in OTHER_NAMES.items():
        if name.lower() in others:
            return f'did you mean "{field}"?'
    from difflib import get_close_matches

    for match in get_close_matches(shorten(name).lower(), FIELDS, n=1):
        return f'did you mean "{match}"?'
    return f"the fields are {', '.join(FIELDS)}"
