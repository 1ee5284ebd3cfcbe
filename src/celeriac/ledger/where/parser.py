"""Parse a condition:

either     = all { "or" all }
all        = negation { "and" negation }
negation   = "not" negation | "(" either ")" | comparison
comparison = FIELD ( "=" | "==" | "!=" | "~" | "!~" | "<" | "<=" | ">" | ">=" ) VALUE

A value with spaces or parentheses is written in quotes, of either kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from celeriac.errors import InvalidConfig
from celeriac.ledger.where.tree import All, Comparison, Either, Node, Not, Operator

MAX_LENGTH = 4_000  # characters: SQLite refuses a condition of a thousand parts
MAX_DEPTH = 100  # parentheses and "not"
MAX_SHOWN = 40  # characters of a text in an error
TOKEN = re.compile(r"[()]|[=!<>~]+|[^\s()=!<>~'\"]+|['\"]")
VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|[^\s()'\"]+")
SPACE = re.compile(r"\s*")
OPERATORS = {**{operator.value: operator for operator in Operator}, "==": Operator.EQUAL}
TEXT_OPERATORS = (Operator.EQUAL, Operator.NOT_EQUAL, Operator.CONTAINS, Operator.CONTAINS_NOT)
CHOICE_OPERATORS = (Operator.EQUAL, Operator.NOT_EQUAL)
NUMBER_OPERATORS = tuple(operator for operator in Operator if operator not in TEXT_OPERATORS[2:])
KEYWORDS = ("and", "or", "not")


class Kind(Struct, frozen=True):
    """The values of a field."""

    what: str
    """What a value is: "a duration"."""

    example: str = ""
    """How it is written."""

    parse: Callable[[str], str | float | None] = str
    """Returns the value of a text; None for a text that is none."""

    operators: Sequence[Operator] = TEXT_OPERATORS


class Token(Struct, frozen=True):
    text: str
    place: int
    """Where it begins, from 0 on."""


def parse_where(text: str, fields: Mapping[str, Kind], aliases: Mapping[str, str], setting: str) -> Node:
    """Return the tree of a condition. Raise `InvalidConfig`, which names the `setting`, with the place of the error."""
    return Parser(text, fields, aliases, setting).parse()


class Parser:
    """Parses one text from left to right."""

    def __init__(self, text: str, fields: Mapping[str, Kind], aliases: Mapping[str, str], setting: str) -> None:
        self._text, self._fields, self._aliases, self._setting = text, fields, aliases, setting
        self._place = self._depth = 0

    def parse(self) -> Node:
        if len(self._text) > MAX_LENGTH:
            raise InvalidConfig(self._setting, f"it is longer than {MAX_LENGTH:,} characters", "write a shorter one")
        node = self._either()
        if (token := self._peek()) is not None:
            problem = "no parenthesis is open" if token.text == ")" else 'it is neither "and" nor "or"'
            raise self._error(token, problem, "join two comparisons with and, or")
        return node

    def _either(self) -> Node:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _all(self) -> Node:
        parts = [self._negation()]
        while self._take("and"):
            parts.append(self._negation())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _negation(self) -> Node:
        start = self._peek()
        if start is not None and (self._take("not") or self._take("(")):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise self._error(start, "it is nested too deeply", "write it with fewer parentheses")
            node = Not(self._negation()) if start.text != "(" else self._either()
            if start.text == "(" and not self._take(")"):
                raise self._error(start, "the parenthesis is never closed", "add a )")
            self._depth -= 1
            return node
        return self._comparison()

    def _comparison(self) -> Node:
        token = self._next("a field")
        name = self._aliases.get(token.text.lower(), token.text.lower())
        if (kind := self._fields.get(name)) is None:
            raise self._error(token, "it is not a field", self._nearest(name))
        sign = self._next(f"an operator after {token.text}")
        operator = OPERATORS.get(sign.text)
        if operator is None or operator not in kind.operators:
            problem = "it is not an operator" if operator is None else f"it cannot compare {name}"
            raise self._error(sign, problem, f"write {token.text} {' or '.join(kind.operators)} and a value")
        value = self._value(f"a value after {token.text}{sign.text}")
        parsed = kind.parse(unquoted(value.text))
        if parsed is None:
            raise self._error(value, f"it is not {kind.what}", f"write {kind.example}")
        return Comparison(name, operator, parsed)

    def _value(self, what: str) -> Token:
        place = self._skip()
        if not (match := VALUE.match(self._text, place)):
            rest = Token(self._text[place:], place)
            if rest.text[:1] in ("'", '"'):
                raise self._error(rest, "the quote is never closed", f"add a {rest.text[0]}")
            raise self._error(rest, f"{what} is missing", "write it there, in quotes if it has spaces or parentheses")
        self._place = match.end()
        return Token(match.group(), place)

    # — tokens —

    def _skip(self) -> int:
        """Return the place of the next token."""
        space = SPACE.match(self._text, self._place)
        self._place = self._place if space is None else space.end()
        return self._place

    def _peek(self) -> Token | None:
        place = self._skip()
        match = TOKEN.match(self._text, place)
        return Token(match.group(), place) if match else None

    def _take(self, word: str) -> bool:
        """Return whether a word comes next, and then go on after it."""
        token = self._peek()
        if token is None or token.text.lower() != word:
            return False
        self._place += len(token.text)
        return True

    def _next(self, what: str) -> Token:
        token = self._peek()
        if token is None or token.text in ("(", ")") or token.text.lower() in KEYWORDS:
            remedy = f"the fields are {', '.join(self._fields)}" if what == "a field" else "write for example took>60"
            raise self._error(token or Token("", self._place), f"{what} is missing", remedy)
        self._place += len(token.text)
        return token

    # — errors —

    def _nearest(self, name: str) -> str:
        from difflib import get_close_matches

        near = get_close_matches(name, [*self._fields, *self._aliases], n=1)
        fields = f"the fields are {', '.join(self._fields)}"
        return f"did you mean {near[0]}? {fields}" if near else fields

    def _error(self, token: Token, problem: str, remedy: str) -> InvalidConfig:
        shown = token.text if len(token.text) <= MAX_SHOWN else f"{token.text[:MAX_SHOWN]}..."
        where = f"at character {token.place + 1}, {shown!r}" if shown else "at the end"
        return InvalidConfig(self._setting, f"{where}: {problem}", remedy)


def unquoted(text: str) -> str:
    return text[1:-1] if text[0] in "'\"" else text
