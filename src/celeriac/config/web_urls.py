"""The URLs to which notices of a run are sent. A path or a query may hold a token: messages show the host alone."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, urlsplit

from celeriac.config.masking import MASK
from celeriac.config.urls import InvalidUrl
from celeriac.task.task import is_unicode

SCHEMES = ("http", "https")
EXAMPLE = "write for example https://ntfy.sh/TOPIC"
UNSAFE = r"[\s\x00-\x1f\x7f]"


def check_web_url(text: str) -> str:
    """Return the URL. Raise `InvalidUrl`, without any part of it, if it is not one of HTTP or HTTPS."""
    if not is_unicode(text) or not text.isascii():
        raise InvalidUrl("has a character that is not of ASCII", "write it as % and two digits for each byte")
    if re.search(UNSAFE, text):
        raise InvalidUrl("has a space or a control character in it", "remove it, or write %20 for a space")
    parts = split(text)
    if parts is None or parts.scheme not in SCHEMES:
        raise InvalidUrl("does not begin with https:// or http://", EXAMPLE)
    if not parts.hostname:
        raise InvalidUrl("names no host", EXAMPLE)
    return text


def masked_web_url(url: Any) -> Any:
    """Return the scheme and the host of a URL, and a mask for the rest."""
    parts = None if url is None else split(str(url))
    if parts is None or not parts.hostname:
        return None if url is None else MASK
    host = parts.netloc.rpartition("@")[2]
    rest = f"/{MASK}" if parts.path.strip("/") or parts.query or parts.fragment else parts.path
    return f"{parts.scheme}://{host}{rest}"


def split(url: str) -> SplitResult | None:
    """Return the parts of a URL; None for a text that has none."""
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0
    except ValueError:
        return None
    return parts if has_port else None
