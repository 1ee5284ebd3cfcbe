"""One endpoint of the REST interface: it is routed by this description, and the OpenAPI document is drawn from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celeriac.web.access import Access
from celeriac.web.answers import JsonAnswer
from celeriac.web.errors import BadRequest, BadValue, TooLarge, WrongMediaType
from celeriac.web.paths import name_of
from celeriac.web.reads import Reads
from celeriac.web.site import Site
from celeriac.web.trace import trace_of

PREFIX = "/api/v1"
MAX_BODY = 1024 * 1024  # bytes of JSON
JSON = "application/json"


class NoQuery(msgspec.Struct, forbid_unknown_fields=True):
    """No parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to an endpoint, checked."""

    site: Site
    reads: Reads
    access: Access
    path: Mapping[str, str]
    """The names in the path."""

    query: Any
    """Of the endpoint's type."""

    body: Any = None
    """Of the endpoint's type, or bytes."""

    media_type: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)
    """TRACEPARENT and TRACESTATE of the client; empty outside a trace."""

    via: str = "REST"
    """Where a person has asked for it."""

    @property
    def asked_by(self) -> str:
        """The asker, for the record of a change."""
        return f"{self.via} ({self.access.role.value})"


Handler: TypeAlias = Callable[[Call], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A path and a method."""

    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    """Return a value for JSON, or a response. It runs in a thread."""

    result: Any = None
    """The type of the value, for msgspec; None if the answer is not JSON."""

    query: type[msgspec.Struct] = NoQuery
    """The parameters after the question mark."""

    body: Any = None
    """The type of the JSON in the request."""

    raw_body: tuple[str, ...] = ()
    """The media types of a body that the handler reads itself."""

    max_body: int = MAX_BODY
    errors: tuple[int, ...] = ()
    """The statuses of its errors, besides those that any endpoint may have."""

    status: int = 200
    media_type: str = JSON
    path_meanings: Mapping[str, str] = field(default_factory=dict)

    def route(self, site: Site, reads: Reads) -> Route:
        """Return the route of Starlette."""

        async def answer(request: Request) -> Response:
            body, media_type = await self._read_body(request)
            call = Call(
                site=site,
                reads=reads,
                access=request.state.access,
                path={name: name_of(part) for name, part in request.path_params.items()},
                query=parse_query(request, self.query),
                body=body,
                media_type=media_type,
                trace=trace_of(request.headers.getlist("traceparent"), request.headers.getlist("tracestate")),
            )
            value = await run_in_threadpool(self.handler, call)
            return value if isinstance(value, Response) else JsonAnswer(value, self.status)

        return Route(PREFIX + self.path, answer, methods=[self.method], name=self.name)

    async def _read_body(self, request: Request) -> tuple[Any, str]:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self.body is None and not self.raw_body:
            return None, media_type
        accepted = self.raw_body or (JSON,)
        if media_type not in accepted:
            raise WrongMediaType(f"Content-Type: {media_type!r} is not known here; send {' or '.join(accepted)}")
        content = await read_limited(request, self.max_body)
        return (content if self.raw_body else parse_body(content, self.body)), media_type


async def read_limited(request: Request, limit: int) -> bytes:
    """Return the body of a request. Raises `TooLarge`."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(f"the body is larger than {limit:,} bytes")
        parts.append(part)
    return b"".join(parts)


def parse_body(content: bytes, kind: Any) -> Any:
    """Return the value of JSON. Raises `BadRequest` and `BadValue`."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise BadValue(plain(error, "body")) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"body: it is not JSON: {error}") from None


def parse_query(request: Request, kind: type[msgspec.Struct]) -> Any:
    """Return the parameters of a request. Raises `BadValue`."""
    lists = {name for name, hint in kind.__annotations__.items() if "list[" in str(hint)}
    given: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name in lists:
            given.setdefault(name, []).append(text)
        elif name in given:
            raise BadValue(f"{name}: it is given twice; give it once")
        else:
            given[name] = text
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise BadValue(plain(error, "query")) from None


def plain(error: msgspec.ValidationError, whole: str) -> str:
    """Return an error of msgspec as FIELD: PROBLEM."""
    problem, _, path = str(error).partition(" - at `$")
    name = path.rstrip("`").lstrip(".") or whole
    return f"{name}: {problem[:1].lower()}{problem[1:]}".replace("`", "")
