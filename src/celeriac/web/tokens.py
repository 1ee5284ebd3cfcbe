"""The tokens of a web server: the role that each gives, and the file that holds them.

One token a line, after its role. Other users of the machine must not be able to write the file:

    operator  4b0f…
    read-only 9c1e…
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from celeriac.config.ownership import problem_of_file
from celeriac.errors import InvalidConfig

SETTING = "web_token_file"
MIN_LENGTH = 16  # characters
MAX_SIZE = 65_536  # bytes of the file
LINE = 'write "operator TOKEN" or "read-only TOKEN", one a line'
MAKE = "make one with `openssl rand -hex 32`"


class Role(StrEnum):
    """The rights of a client."""

    READER = "read-only"
    """See everything, change nothing."""

    OPERATOR = "operator"
    """Also submit, cancel, retry and drain."""


class Token(NamedTuple):
    """One token, as its digest: a comparison then takes the same time whatever the lengths are."""

    digest: bytes
    role: Role


class Tokens:
    """All tokens that a server accepts."""

    def __init__(self, tokens: Sequence[tuple[Role, str]]) -> None:
        self._tokens = [Token(digest_of(text), role) for role, text in tokens]

    def role_of(self, text: str) -> Role | None:
        """Return the role that a token gives; None for an unknown one. Compares with every token, in constant time."""
        given, role = digest_of(text), None
        for token in self._tokens:
            if hmac.compare_digest(given, token.digest):
                role = token.role
        return role


def digest_of(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogateescape")).digest()


def read_tokens(path: str) -> Tokens:
    """Read the file of tokens. Raises `InvalidConfig`, which shows no token."""
    file = Path(path)
    if (problem := problem_of_file(file)) is not None:
        raise InvalidConfig(SETTING, f"{path!r} {problem}", f"run chmod 600 {path}, as its owner")
    try:
        with file.open("rb") as opened:
            lines = opened.read(MAX_SIZE).decode().splitlines()
    except (OSError, ValueError):
        raise InvalidConfig(SETTING, f"{path!r} cannot be read", "name a readable text file") from None
    tokens = [parse_line(path, number, line) for number, line in enumerate(lines, 1) if is_token(line)]
    if not tokens:
        raise InvalidConfig(SETTING, f"{path!r} holds no token", LINE)
    return Tokens(tokens)


def is_token(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def parse_line(path: str, number: int, line: str) -> tuple[Role, str]:
    """Return the role and the token of a line. Raises `InvalidConfig`."""
    where = f"{SETTING}: {path}:{number}"
    words = line.split()
    if len(words) != 2 or words[0] not in list(Role):
        raise InvalidConfig(where, "is not a role and a token", LINE)
    if len(words[1]) < MIN_LENGTH:
        raise InvalidConfig(where, f"the token has fewer than {MIN_LENGTH} characters", MAKE)
    return Role(words[0]), words[1]
