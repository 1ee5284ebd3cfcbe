"""Signed messages: a worker with a signing key runs only unmodified messages signed with that key.

payload ─► canonical JSON ─► HMAC-SHA256 ─► payload with its signature ─► broker ─► worker: the same again, compared

The signature covers the name of the Celery task, a line break, and the payload without its signature as JSON: UTF-8,
names sorted, no spaces. If the payload holds text that is not valid Unicode, the JSON is ASCII with escapes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import msgspec

from celeriac.errors import InvalidConfig

if TYPE_CHECKING:
    import hmac

SETTING = "signing_key"
SIGNATURE = "signature"
FINGERPRINT_OF = b"celeriac-fingerprint"
FINGERPRINT_LENGTH = 12  # hexadecimal digits
HEADER = "celeriac_signature"
"""The message header for a signature that must not change the arguments."""

MIN_LENGTH = 16  # characters
REMEDY = f"give {MIN_LENGTH} characters or more, such as `openssl rand -hex 32` makes; several with commas between them"

encode = msgspec.json.Encoder(order="sorted").encode


class SigningKeys:
    """One key or several. The first key signs, all keys verify. So keys can be changed on one machine after another."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Raise `InvalidConfig`, without showing a key, if there is none or one is too short."""
        import hmac  # late: most programs have no key

        if not keys:
            raise InvalidConfig(SETTING, "is empty", REMEDY)
        if min(map(len, keys)) < MIN_LENGTH:
            problem = f"one of {len(keys)} is too short" if len(keys) > 1 else "is too short"
            raise InvalidConfig(SETTING, problem, REMEDY)
        self._hmacs = [hmac.new(key.encode(), digestmod="sha256") for key in keys]

    @classmethod
    def of(cls, text: str | None) -> Self | None:
        """Return the keys in the setting's text, separated by commas or line breaks; None if there is no text."""
        return None if text is None else cls(split_keys(text))

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """A short text for each key, by which two keys can be compared and none can be found out."""
        return tuple(fingerprint(keyed) for keyed in self._hmacs)

    def sign(self, name: str, payload: Mapping[str, Any]) -> str:
        """Return the signature for a payload that has none yet."""
        return signature(self._hmacs[0], name, canonical(payload))

    def verify(self, name: str, payload: Mapping[str, Any]) -> bool:
        from hmac import compare_digest

        received = payload.get(SIGNATURE)
        if not isinstance(received, str) or not received.isascii():
            return False
        unsigned = {field: value for field, value in payload.items() if field != SIGNATURE}
        try:
            content = canonical(unsigned)
            # Refuse NaN, and a text that Kombu decoded as a date: their JSON decodes to another value.
            if json.loads(content) != unsigned:
                return False
        except (TypeError, ValueError, OverflowError, RecursionError):  # such a payload was never signed
            return False
        return any(compare_digest(received, signature(keyed, name, content)) for keyed in self._hmacs)


def fingerprint(keyed: hmac.HMAC) -> str:
    digest = keyed.copy()
    digest.update(FINGERPRINT_OF)
    return digest.hexdigest()[:FINGERPRINT_LENGTH]


def split_keys(text: str) -> list[str]:
    return [key.strip() for key in text.replace("\n", ",").split(",") if key.strip()]


def canonical(payload: Mapping[str, Any]) -> bytes:
    try:
        return encode(payload)
    except UnicodeEncodeError:
        return json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def signature(keyed: hmac.HMAC, name: str, content: bytes) -> str:
    """Return the signature. `keyed` is an HMAC of the key alone; it is copied and not changed."""
    digest = keyed.copy()
    digest.update(b"%b\n%b" % (name.encode(), content))
    return digest.hexdigest()
