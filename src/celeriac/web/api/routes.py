"""All endpoints of the REST interface."""

from __future__ import annotations

from starlette.routing import Route

from celeriac.web.api import runs

ENDPOINTS = (*runs.ENDPOINTS,)


def api_routes() -> list[Route]:
    """Return the routes of the REST interface."""
    return [endpoint.route() for endpoint in ENDPOINTS]
