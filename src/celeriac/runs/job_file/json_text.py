"""Parse JSON carefully: report the place of an error, and names that an object gives twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

MAX_DIGITS = 300  # of an integer; a longer integer becomes an infinite float


class JsonObject(dict[str, object]):
    """The members of an object. `repeated` holds the names that it gives more than once."""

    def __init__(self, pairs: Sequence[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.repeated: list[str] = []
        if len(self) < len(pairs):
            times = Counter(name for name, _ in pairs)
            self.repeated = [name for name in self if times[name] > 1]


KINDS: dict[type, str] = {
    JsonObject: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
}


class BrokenJson(ValueError):
    """The text is not JSON. The error does not repeat the text: it may contain a secret."""

    def __init__(self, problem: str, position: int | None = None) -> None:
        """`position` is that of the first character that is wrong, if it is known."""
        place = "" if position is None else f" at column {position + 1}"
        super().__init__(f"broken JSON{place}: {problem}")
        self.problem, self.position = problem, position


def parse_json(text: str) -> object:
    """Return the value. Raise `BrokenJson` with the place of the first error."""
    try:
        value = json.loads(text, object_pairs_hook=JsonObject, parse_int=_parse_int)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        # Not `colno`, which counts from the last line break: a cell of a table may contain line breaks.
        raise BrokenJson(_worded(error.msg), error.pos) from None
    except UnicodeEncodeError:
        raise BrokenJson(r"a \u escape is half of a pair") from None
    except RecursionError:
        raise BrokenJson("brackets are nested too deeply") from None
    return value


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def _worded(message: str) -> str:
    return message[:1].lower() + message[1:].removesuffix(" at").removesuffix(" starting")


class AsWritten:
    """Shows a bad value in an error message as JSON. For an object or a list, it shows only the kind."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        is_container = isinstance(self.value, dict | list)
        return kind_of(self.value) if is_container else json.dumps(self.value, ensure_ascii=False)


def kind_of(value: object) -> str:
    """Return the kind of a value: "a list". Its content may be secret."""
    return KINDS.get(type(value)) or json.dumps(value)
