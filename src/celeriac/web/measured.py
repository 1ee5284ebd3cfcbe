"""Count and time the answers of a server, by route: names in an address are no labels."""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celeriac.telemetry.metrics import WEB_REQUEST_SECONDS, WEB_REQUESTS
from celeriac.telemetry.telemetry import OTHER, Telemetry


class Measured:
    """ASGI middleware before the gate, so that refused requests count, too."""

    def __init__(self, app: ASGIApp, routes: Sequence[Route], telemetry: Telemetry) -> None:
        self._app, self._telemetry = app, telemetry
        self._paths: dict[object, str] = {route.endpoint: route.path for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()

        async def measure(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = self._paths.get(scope.get("endpoint"), OTHER)
                self._telemetry.count(WEB_REQUESTS, route, f"{message['status'] // 100}xx")
                self._telemetry.observe(WEB_REQUEST_SECONDS, time.monotonic() - began, route)
            await send(message)

        await self._app(scope, receive, measure)
