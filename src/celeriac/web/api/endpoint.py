"""One endpoint of the REST interface: what routes it, and what describes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celeriac.web.answers import JsonAnswer
from celeriac.web.site import Site

PREFIX = "/api/v1"
Handler: TypeAlias = Callable[[Request], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter in the path or in the query."""

    name: str
    kind: Any
    """Its type, for msgspec."""

    meaning: str
    in_path: bool = False
    is_list: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A path and a method."""

    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    """Takes the request; returns a value for JSON, or a response. A plain function runs in a thread."""

    result: Any
    """The type of the value, for msgspec."""

    parameters: tuple[Parameter, ...] = ()
    body: Any = None
    """The type of the JSON in the request."""

    errors: tuple[int, ...] = ()
    status: int = 200
    media_type: str = "application/json"

    @property
    def changes(self) -> bool:
        """Whether it needs an operator."""
        return self.method != "GET"

    def route(self) -> Route:
        """Return the route of Starlette."""
        handler, status = self.handler, self.status

        def answer(request: Request) -> Response:
            value = handler(request)
            return value if isinstance(value, Response) else JsonAnswer(value, status)

        return Route(PREFIX + self.path, answer, methods=[self.method], name=self.name)


def site_of(request: Request) -> Site:
    """Return the site of a request."""
    site: Site = request.app.state.site
    return site
