"""JSON read with care: what is wrong with it is found and placed, a name given twice is noticed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

LONGEST_INTEGER = 300  # digits; what is longer becomes a float, which is infinite


class JsonObject(dict[str, object]):
    """The values of an object, and the names it gave more than once."""

    def __init__(self, pairs: Sequence[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.repeated: list[str] = []
        if len(self) < len(pairs):
            times = Counter(name for name, _ in pairs)
            self.repeated = [name for name in self if times[name] > 1]


A_KIND_OF: dict[type, str] = {
    JsonObject: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
}


class BrokenJson(ValueError):
    """No JSON. The text of it is not repeated here: it may hold a secret."""


def parse_json(text: str) -> object:
    try:
        value = json.loads(text, object_pairs_hook=JsonObject, parse_int=_parse_int)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        # colno counts from the last line break; a table's cell may hold some
        raise BrokenJson(f"broken JSON at column {error.pos + 1}: {_in_words(error.msg)}") from None
    except UnicodeEncodeError:
        raise BrokenJson(r"broken JSON: a \u escape is half of a pair") from None
    except RecursionError:
        raise BrokenJson("too many brackets inside each other") from None
    return value


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_INTEGER else float(digits)


def _in_words(message: str) -> str:
    return message[:1].lower() + message[1:].removesuffix(" at").removesuffix(" starting")


class AsWritten:
    """Stands in for a wrong value where an error message shows it: as JSON, and never what a table or list holds."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        holds_more = isinstance(self.value, dict | list)
        return kind_of(self.value) if holds_more else json.dumps(self.value, ensure_ascii=False)


def kind_of(value: object) -> str:
    """What a value is, without showing it."""
    return A_KIND_OF.get(type(value)) or json.dumps(value)
