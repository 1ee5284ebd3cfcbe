"""The gate before all routes: it admits clients by the rules of `access`, and adds the headers of every response.

A request with another method than GET changes something, so it needs an operator: a new route cannot be forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celeriac.config.ownership import ROOT
from celeriac.surviving_loop import Survivor
from celeriac.web.access import (
    COOKIE,
    SAFE_METHODS,
    SESSION_DURATION,
    WITHOUT_TOKEN,
    WRONG_TOKEN,
    AccessRules,
    Refusal,
    Request,
    check_embedding,
)
from celeriac.web.access import is_same_origin as has_same_origin
from celeriac.web.answers import error_answer
from celeriac.web.login import login_page
from celeriac.web.paths import routed_path, stored_query
from celeriac.web.peer import user_of

LOGIN, LOGOUT = "/login", "/logout"
HEALTH = "/healthz"
OPEN_ON_LOOPBACK = ("/readyz", "/metrics")
"""Paths for programs of other users of this machine, such as Prometheus. They show no commands and no output."""

MAX_FORM = 65_536  # bytes
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # with no-referrer, browsers hide the Origin of forms, too
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)


class TooLarge(Exception):
    """A request whose body is larger than the limit."""


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app, self._rules = app, rules
        self._survivor = Survivor("celeriac-web")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await self._answer(scope, receive, with_headers(send))
        except ClientDisconnect:
            return  # in the middle of its request
        except Exception as error:  # noqa: BLE001 - a bug, which has been answered already
            self._survivor.record(error)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        scope["path"], scope["query_string"] = routed_path(scope["raw_path"]), stored_query(scope["query_string"])
        path, method = scope["path"], scope["method"]
        if path == HEALTH and method in SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        if (refusal := self._rules.check_host(headers)) is not None:
            await refuse(refusal, headers, path)(scope, receive, send)
            return
        if path == LOGIN and method == "POST" and self._rules.tokens is not None:
            await (await self._log_in(headers, receive))(scope, receive, send)
            return
        if self._rules.address.is_loopback and path in OPEN_ON_LOOPBACK and method in SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        await self._admit(scope, receive, send, headers)

    async def _admit(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        path, method = scope["path"], scope["method"]
        cookie = cookie_of(headers)
        request = Request(method, headers, cookie, is_own_user=lambda: is_own_user(scope))
        access = check_embedding(headers) or self._rules.admit(request)
        if isinstance(access, Refusal):
            await refuse(access, headers, path)(scope, receive, send)
            return
        if path == LOGOUT and method == "POST" and has_same_origin(headers):
            await self._log_out(cookie)(scope, receive, send)
            return
        if method not in SAFE_METHODS:
            if access.csrf is not None and is_form(headers):
                try:
                    body = await read_body(receive, MAX_FORM)
                except TooLarge:
                    await error_answer(413, f"the form is larger than {MAX_FORM:,} bytes")(scope, receive, send)
                    return
                request, receive = request._replace(form_csrf=form_field(body, "csrf")), replay(body, receive)
            if (refusal := self._rules.check_change(access, request)) is not None:
                await refuse(refusal, headers, path)(scope, receive, send)
                return
        scope.setdefault("state", {})["access"] = access
        await self._app(scope, receive, send)

    async def _log_in(self, headers: Mapping[str, str], receive: Receive) -> Response:
        """Begin a session for the token of a form."""
        if not has_same_origin(headers) or self._rules.tokens is None:
            return error_answer(403, "the login comes from a page of another server")
        try:
            token = form_field(await read_body(receive, MAX_FORM), "token")
        except TooLarge:
            return error_answer(413, f"the form is larger than {MAX_FORM:,} bytes")
        if token is None or (role := self._rules.tokens.role_of(token.strip())) is None:
            return login_page(was_wrong=True)
        response = RedirectResponse("/", 303)
        cookie = self._rules.sessions.begin(role)
        response.set_cookie(COOKIE, cookie, max_age=int(SESSION_DURATION), httponly=True, samesite="strict")
        return response

    def _log_out(self, cookie: str | None) -> Response:
        if cookie is not None:
            self._rules.sessions.end(cookie)
        response = RedirectResponse("/", 303)
        response.delete_cookie(COOKIE)
        return response


def is_own_user(scope: Scope) -> bool:
    """Return whether the client's process belongs to the user of this server, or to root."""
    if scope.get("client") is None or scope.get("server") is None:
        return False
    user = user_of(tuple(scope["client"]), tuple(scope["server"]))
    return user is not None and user in (os.geteuid(), ROOT)


def headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def cookie_of(headers: Mapping[str, str]) -> str | None:
    """Return the session's cookie."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


def refuse(refusal: Refusal, headers: Mapping[str, str], path: str) -> Response:
    """Return the answer for a refused request: for a browser without a session, the form to log in."""
    if (
        refusal in (WITHOUT_TOKEN, WRONG_TOKEN)
        and not path.startswith("/api/")
        and "text/html" in headers.get("accept", "")
    ):
        return login_page()
    response = error_answer(refusal.status, refusal.problem)
    if refusal.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


def is_form(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").startswith("application/x-www-form-urlencoded")


def form_field(body: bytes, name: str) -> str | None:
    """Return one field of a form."""
    try:
        fields = parse_qs(body.decode("latin-1"), max_num_fields=100)
    except ValueError:
        return None
    return fields.get(name, [None])[0]


async def read_body(receive: Receive, limit: int) -> bytes:
    """Return the body of a request. Raises `TooLarge`."""
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > limit:
            raise TooLarge
        if not message.get("more_body"):
            return body


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a function that receives the body again, and then what follows."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    """Return a function that sends each response with the headers of all."""

    async def send_with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in message["headers"]}
            added = [*HEADERS, (b"cache-control", b"no-store")]
            message["headers"] = [*message["headers"], *(header for header in added if header[0] not in names)]
        await send(message)

    return send_with_headers
