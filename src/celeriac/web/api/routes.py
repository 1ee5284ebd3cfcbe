"""All endpoints of the REST interface."""

from __future__ import annotations

from starlette.routing import Route

from celeriac.web.api import broker, changes, pauses, runs, streams, tasks
from celeriac.web.api.endpoint import Endpoint
from celeriac.web.api.openapi import document_endpoint
from celeriac.web.poller import Poller
from celeriac.web.reads import Reads
from celeriac.web.site import Site


def all_endpoints(poller: Poller) -> tuple[Endpoint, ...]:
    """Return the endpoints of the REST interface."""
    tables = (runs.ENDPOINTS, tasks.ENDPOINTS, broker.ENDPOINTS, changes.ENDPOINTS, pauses.ENDPOINTS)
    return (*(endpoint for table in tables for endpoint in table), *streams.endpoints(poller))


def api_routes(site: Site, reads: Reads, poller: Poller) -> list[Route]:
    """Return the routes of the REST interface."""
    endpoints = all_endpoints(poller)
    return [endpoint.route(site, reads) for endpoint in (*endpoints, document_endpoint(endpoints))]
