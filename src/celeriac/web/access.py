"""Decide what a request may do. Values in, decisions out: no I/O.

Host ─► one of this server's? ─► a token, a session, or the user of this process on loopback ─► role
                                                                     │
                          a request that changes something ◄─────────┘ needs an operator, and from a browser
                                                                       the Origin of this server and a CSRF token
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from celeriac.web.address import Address
from celeriac.web.tokens import Role, Tokens

COOKIE = "celeriac_session"
CSRF_HEADER = "x-csrf-token"
SESSION_DURATION = 12 * 3600.0  # seconds
MAX_SESSIONS = 1_000
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
BROWSER_HEADERS = ("origin", "sec-fetch-site", "referer")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?")


class Refusal(NamedTuple):
    """An answer without the content that was asked for."""

    status: int
    problem: str


WITHOUT_TOKEN = Refusal(401, "a token is needed; send it as Authorization: Bearer TOKEN")
WRONG_TOKEN = Refusal(401, "the token is not known")
OTHER_USER = Refusal(401, "this server belongs to another user of this machine; start it with a file of tokens")
UNKNOWN_HOST = Refusal(421, "the Host of the request is not this server's; ask for localhost or for its address")
ONLY_READS = Refusal(403, "this token may only read; use one of an operator")
OTHER_ORIGIN = Refusal(403, "the request comes from a page of another server")
WITHOUT_CSRF = Refusal(403, "the request lacks the CSRF token of its page; reload the page")


@dataclass(frozen=True, slots=True)
class Access:
    """An admitted client."""

    role: Role
    csrf: str | None
    """What its pages send with each change; None if it sends a token of its own with each request."""


class Sessions:
    """The browsers that have logged in. They are kept in memory: a restart of the server ends them all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: dict[str, tuple[Access, float]] = {}

    def begin(self, role: Role) -> str:
        """Return the cookie of a new session. The oldest session ends if there are too many."""
        if len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        cookie = secrets.token_urlsafe(32)
        self._sessions[cookie] = (Access(role, secrets.token_urlsafe(32)), self._clock() + SESSION_DURATION)
        return cookie

    def find(self, cookie: str) -> Access | None:
        """Return the access of a session that has not ended."""
        access, until = self._sessions.get(cookie, (None, 0.0))
        return access if self._clock() < until else None

    def end(self, cookie: str) -> None:
        self._sessions.pop(cookie, None)


class Request(NamedTuple):
    """The parts of a request that decide."""

    method: str
    headers: Mapping[str, str]
    """With names in lower case."""

    cookie: str | None
    form_csrf: str | None = None
    is_own_user: Callable[[], bool] = lambda: False
    """Whether its process belongs to the user of this server, or to root."""


class AccessRules:
    """The rules of one server."""

    def __init__(self, address: Address, tokens: Tokens | None) -> None:
        """Without tokens, the server listens on loopback, and its user alone may use it."""
        self.address, self.tokens, self.sessions = address, tokens, Sessions()
        self._own_user = Access(Role.OPERATOR, secrets.token_urlsafe(32))

    def check_host(self, headers: Mapping[str, str]) -> Refusal | None:
        """Refuse a name that an attacker's DNS may have given to this server.

        On another address than loopback any name may be this server's, and only a token of the client's counts.
        """
        host = HOST.fullmatch(headers.get("host", ""))
        if host is None:
            return UNKNOWN_HOST
        name = host["name"].strip("[]").lower()
        is_own = not self.address.is_loopback or name in LOOPBACK_NAMES or name == self.address.host.lower()
        return None if is_own else UNKNOWN_HOST

    def admit(self, request: Request) -> Access | Refusal:
        """Return the access of a client."""
        given = request.headers.get("authorization")
        if self.tokens is None:
            return self._own_user if request.is_own_user() else OTHER_USER
        if given is not None:
            scheme, _, token = given.partition(" ")
            role = self.tokens.role_of(token.strip()) if scheme.lower() == "bearer" else None
            return WRONG_TOKEN if role is None else Access(role, None)
        session = self.sessions.find(request.cookie) if request.cookie is not None else None
        return WITHOUT_TOKEN if session is None else session

    def check_change(self, access: Access, request: Request) -> Refusal | None:
        """Refuse a change by a reader, and one that the page of another server has sent in a browser."""
        if access.role is not Role.OPERATOR:
            return ONLY_READS
        if access.csrf is None:
            return None
        if not is_same_origin(request.headers):
            return OTHER_ORIGIN
        if not is_browser(request):
            return None
        given = request.headers.get(CSRF_HEADER) or request.form_csrf or ""
        is_right = hmac.compare_digest(given.encode("utf-8", "surrogateescape"), access.csrf.encode())
        return None if is_right else WITHOUT_CSRF


def check_embedding(headers: Mapping[str, str]) -> Refusal | None:
    """Refuse what the page of another server has embedded or fetched. It could not read the answer, but would cost a
    read. A link from another page is followed."""
    is_followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    is_foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
    return OTHER_ORIGIN if is_foreign and not is_followed else None


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Return whether a page of this server, or no page at all, has sent a request."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def is_browser(request: Request) -> bool:
    """Return whether a browser may have sent a request, with a cookie or a login of its own accord."""
    return request.cookie is not None or any(name in request.headers for name in BROWSER_HEADERS)
