"""The pages below `/celeriac/`: routes, permissions and templates. Nothing here changes anything.

The overview needs the permission to see Airflow's cluster activity. The pages of a task instance and of a run need that
to see task instances of the DAG, and the events need that for the audit log of the DAG. All routes answer `GET` alone.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_access_view
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from celeriac.airflow.component_facts import sealed
from celeriac.airflow.page.database import TaskName
from celeriac.airflow.page.rendering import STATIC, make_templates
from celeriac.airflow.page.sources import Sources

MEDIA_TYPES = {"style.css": "text/css", "live.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PROBLEMS = {
    HTTPStatus.UNAUTHORIZED: "Log in to Airflow to see this page.",
    HTTPStatus.FORBIDDEN: "Your role in Airflow does not permit you to see this page.",
    HTTPStatus.NOT_FOUND: "There is no such page.",
}


def make_page() -> FastAPI:
    """Return the application. It opens no connection before the first request."""
    app = FastAPI(title="Celeriac", docs_url=None, redoc_url=None, openapi_url=None)
    pages = Pages()
    see_cluster = Depends(requires_access_view(AccessView.CLUSTER_ACTIVITY))
    see_task = Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE))
    app.add_api_route("/", pages.overview, dependencies=[see_cluster], response_class=HTMLResponse)
    address = "/task/{dag_id}/{run_id}/{task_id}/{index}"
    app.add_api_route(address, pages.task, dependencies=[see_task], response_class=HTMLResponse)
    app.add_api_route("/run/{dag_id}/{run_id}", pages.run, dependencies=[see_task], response_class=HTMLResponse)
    app.add_api_route("/facts", pages.facts)
    app.add_api_route("/static/{name}", static_file)
    app.add_exception_handler(StarletteHTTPException, pages.problem)
    return app


class Pages:
    """Renders the pages. FastAPI calls the methods in its own threads."""

    def __init__(self) -> None:
        self._sources = Sources()
        self._templates = make_templates()

    def overview(self, request: Request, user: GetUserDep) -> Response:
        """Show the queues and the workers of each executor that the user may see."""
        permitted = get_auth_manager().get_authorized_dag_ids(user=user)
        overviews = [each for each in self._sources.overviews() if may_see_team(each.team, user)]
        return self._render("overview.html", request, overviews=overviews, permitted=permitted)

    def task(self, request: Request, user: GetUserDep, dag_id: str, run_id: str, task_id: str, index: str) -> Response:
        """Show why a task instance waits, and what became of it."""
        name = TaskName(dag_id, run_id, task_id, int(index) if index.isdecimal() else -1)
        details = self._sources.task(name)
        if details is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such task instance.")
        entries = self._sources.log_entries(name) if may_see_events(request, user) else None
        return self._render("task.html", request, name=name, details=details, entries=entries)

    def run(self, request: Request, user: GetUserDep, dag_id: str, run_id: str) -> Response:
        """Show of each queued or running task instance of a run why it waits or where it runs."""
        details = self._sources.run(dag_id, run_id)
        if details is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "There is no such run.")
        return self._render("run.html", request, dag=dag_id, run=run_id, details=details)

    def facts(self) -> Response:
        """Return what this API server uses, for `airflow celeriac doctor`. It needs no login: see `sealed`."""
        content = sealed(self._sources.facts())
        return Response(content or b"", HTTPStatus.OK if content else HTTPStatus.NOT_FOUND, HEADERS)

    async def problem(self, request: Request, error: Exception) -> Response:
        """Show in one sentence why there is no page."""
        status = HTTPStatus(getattr(error, "status_code", HTTPStatus.INTERNAL_SERVER_ERROR))
        own = status is HTTPStatus.NOT_FOUND and str(getattr(error, "detail", "")).startswith("There is")
        text = str(error.detail) if own and isinstance(error, StarletteHTTPException) else PROBLEMS.get(status)
        return self._render("problem.html", request, status=status, text=text or status.phrase)

    def _render(self, template: str, request: Request, status: int = HTTPStatus.OK, **values: Any) -> Response:
        base = str(request.scope.get("root_path", ""))
        text = self._templates.get_template(template).render(base=base, **values)
        return HTMLResponse(text, int(status), HEADERS)


def static_file(name: str) -> Response:
    """Return one of the page's own files. They hold no secrets, and need no login."""
    if name not in MEDIA_TYPES:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    headers = {**HEADERS, "Cache-Control": "max-age=300"}
    return Response((STATIC / name).read_bytes(), media_type=MEDIA_TYPES[name], headers=headers)


def may_see_team(team: str | None, user: Any) -> bool:
    """Return whether a user may see the executor of a team. All users see the executor without a team."""
    if team is None:
        return True
    from airflow.api_fastapi.auth.managers.models.resource_details import TeamDetails  # 3.2, as are teams

    return bool(get_auth_manager().is_authorized_team(method="GET", details=TeamDetails(name=team), user=user))


def may_see_events(request: Request, user: Any) -> bool:
    try:
        requires_access_dag("GET", DagAccessEntity.AUDIT_LOG)(request, user)
    except HTTPException:
        return False
    return True
