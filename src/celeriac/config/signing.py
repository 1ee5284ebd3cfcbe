"""Signed messages: a worker that has the key runs what somebody with the key has asked for, as he asked for it.

payload ─► canonical JSON ─► HMAC-SHA256 ─► payload with its signature ─► broker ─► worker: the same again, compared

What is signed is the name of the Celery task, a line break, and the payload without its signature as JSON: UTF-8, names
sorted, no spaces. Text that is not Unicode makes it JSON in ASCII, with escapes.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import msgspec

from celeriac.errors import InvalidConfig

SETTING = "signing_key"
VARIABLES = ("CELERIAC_SIGNING_KEY", "CELERIAC_SIGNING_KEY_FILE")
"""What no command inherits from its worker."""

SIGNATURE = "signature"
HEADER = "celeriac_signature"
"""Where a signature travels that is not to change the arguments."""

LEAST_LENGTH = 16  # characters
REMEDY = (
    f"give {LEAST_LENGTH} characters or more, such as `openssl rand -hex 32` makes; several with commas between them"
)

encode = msgspec.json.Encoder(order="sorted").encode


class SigningKeys:
    """The first signs, all of them verify: so that keys can be changed one machine after another."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Raises `InvalidConfig`, which shows no key."""
        if not keys or min(map(len, keys)) < LEAST_LENGTH:
            problem = (
                "is empty" if not keys else f"one of {len(keys)} is too short" if len(keys) > 1 else "is too short"
            )
            raise InvalidConfig(SETTING, problem, REMEDY)
        self._begun = [hmac.new(key.encode(), digestmod="sha256") for key in keys]

    @classmethod
    def of(cls, text: str | None) -> Self | None:
        """As the setting says them: with commas or lines between them."""
        return None if text is None else cls(keys_of(text))

    def sign(self, name: str, payload: Mapping[str, Any]) -> str:
        """For a payload that has no signature yet."""
        return signature(self._begun[0], name, canonical(payload))

    def verify(self, name: str, payload: Mapping[str, Any]) -> bool:
        said = payload.get(SIGNATURE)
        if not isinstance(said, str) or not said.isascii():
            return False
        unsigned = {field: value for field, value in payload.items() if field != SIGNATURE}
        try:
            content = canonical(unsigned)
            if (
                json.loads(content) != unsigned
            ):  # NaN, or what Kombu reads as a date: written, it looks like another value
                return False
        except (TypeError, ValueError, OverflowError, RecursionError):  # no payload that was ever signed
            return False
        return any(hmac.compare_digest(said, signature(begun, name, content)) for begun in self._begun)


def keys_of(text: str) -> list[str]:
    return [key.strip() for key in text.replace("\n", ",").split(",") if key.strip()]


def canonical(payload: Mapping[str, Any]) -> bytes:
    try:
        return encode(payload)
    except UnicodeEncodeError:
        return json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def signature(begun: hmac.HMAC, name: str, content: bytes) -> str:
    its = begun.copy()
    its.update(b"%b\n%b" % (name.encode(), content))
    return its.hexdigest()
