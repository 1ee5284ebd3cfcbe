"""Hide the passwords in URLs. A URL may be wrong in any way: then more is hidden, never less.

amqp://USER:PASSWORD@HOST//?ssl_password=PASSWORD ─► amqp://USER:******@HOST//?ssl_password=******
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from celeriac.config.urls import AMQP, DATABASES, is_cut, kind_of

MASK = "******"
NEXT_URL = r";\s*(?=[A-Za-z][\w.+-]*://)"
"""Separates the URLs of a list. A semicolon before anything else may stand in a password."""

PARAMETER = r"(?<=[?&;#])([^=?&;#]*)=([^&]*)"
HIDDEN_NAME = r"(?i)pass|pwd|secret|token|credential|api.?key"
IN_TEXT = r"(?s)(?<=://).*@"
USER_NAMES = (*DATABASES, *AMQP)
"""The kinds of servers whose URLs may hold a user name without a password."""


def masked(url: Any) -> Any:
    """Return a URL without its passwords. A text may hold several URLs, with semicolons between them."""
    if not isinstance(url, str):
        return url if url is None else masked_text(str(url))
    separators = re.findall(NEXT_URL, url)
    urls = [masked_url(one) for one in re.split(NEXT_URL, url)]
    return "".join(part for pair in zip(urls, [*separators, ""], strict=True) for part in pair)


def masked_text(text: str) -> str:
    """Return a text without the passwords of URLs that may be in it, anywhere and in any form."""
    return masked_parameters(re.sub(IN_TEXT, f"{MASK}@", text))


def masked_url(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if kind_of(url) == "sqlite":  # it has no login, and an @ in a path is a part of it
        return masked_parameters(url)
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if is_cut(authority, rest[len(authority) :]):  # a raw character in the password ends it too early
        authority = rest[: rest.rindex("@") + 1] if "@" in rest else rest
    login, at, host = authority.rpartition("@")
    tail = rest[len(authority) :]
    return f"{scheme}{separator}{masked_login(login, kind_of(url))}{at}{masked_parameters(host + tail)}"


def masked_login(login: str, kind: str) -> str:
    """Return what stands before the @, without the password. A text without a colon may be one."""
    user, colon, password = login.partition(":")
    if colon:
        return f"{user}:{MASK}" if password else login
    return MASK if login and kind not in USER_NAMES else login


def masked_parameters(text: str) -> str:
    """Return the text after the host without the passwords among its parameters."""
    return re.sub(
        PARAMETER,
        lambda found: f"{found[1]}={MASK}" if re.search(HIDDEN_NAME, unquote(found[1])) and found[2] else found[0],
        text,
    )
