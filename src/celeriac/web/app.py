"""The web application of one process: probes, metrics, the REST interface and the page behind one gate."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from celeriac.telemetry.telemetry import Telemetry
from celeriac.web.answers import HANDLED, JsonAnswer, answer_for, error_answer
from celeriac.web.api.routes import api_routes
from celeriac.web.gate import Gate
from celeriac.web.health import HealthBoard
from celeriac.web.measured import Measured
from celeriac.web.page.routes import Pages, is_for_people, not_found_page
from celeriac.web.poller import Poller
from celeriac.web.reads import Reads
from celeriac.web.site import Site


def make_app(site: Site, poller: Poller, telemetry: Telemetry | None = None) -> ASGIApp:
    """Return the application of a site, which counts its answers in `telemetry`. The caller starts and ends the
    poller."""
    routes = routes_of(site, poller)
    handlers = dict.fromkeys((*HANDLED, Exception), answer_for) | {HTTPException: answer_http_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    gate = Gate(app, site.rules)
    return gate if telemetry is None else Measured(gate, routes, telemetry)


def routes_of(site: Site, poller: Poller) -> list[Route]:
    """Return all routes of a site. Each of them is behind the gate."""
    if not site.shows_runs:
        return probe_routes(site)
    reads = Reads(site.sources)
    return [*probe_routes(site), *api_routes(site, reads, poller), *Pages(site, reads, poller).routes()]


def probe_routes(site: Site) -> list[Route]:
    board = HealthBoard(site.checks)

    async def healthz(_: Request) -> Response:
        is_ok, report = await board.report(ready=False)
        return JsonAnswer(report, 200 if is_ok else 503)

    async def readyz(_: Request) -> Response:
        is_ok, report = await board.report(ready=True)
        return JsonAnswer(report, 200 if is_ok else 503)

    def metrics(request: Request) -> Response:
        if site.render_metrics is None:
            return error_answer(404, "this process has no metrics")
        content, media_type = site.render_metrics(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": media_type})

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]


def answer_http_error(request: Request, error: Exception) -> Response:
    """Return the answer for an error of the routing: an unknown path, or a method that it does not have."""
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for these alone
    if error.status_code == 404 and is_for_people(request):
        return not_found_page(request)
    if error.status_code == 404:
        return error_answer(404, "there is no such page; /api/v1/openapi.json describes the interface")
    answer = error_answer(error.status_code, error.detail.lower())
    answer.headers.update(error.headers or {})
    return answer
