"""The addresses of the page. Each answers with HTML, also for an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial, wraps
from itertools import chain
from typing import TypeAlias
from urllib.parse import parse_qsl

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from celeriac.errors import CeleriacError, InvalidInput
from celeriac.web.api.endpoint import Call, read_limited
from celeriac.web.api.streams import stream
from celeriac.web.errors import NotFound, WebError
from celeriac.web.gate import MAX_FORM
from celeriac.web.page.actions import ACTIONS, Notices
from celeriac.web.page.display import link
from celeriac.web.page.question import Action, Target
from celeriac.web.page.rendering import STATIC_PATH, answer, encode, get_static, render
from celeriac.web.page.task import explanation_values, whole_output
from celeriac.web.page.views import VIEWS, View
from celeriac.web.poller import Poller
from celeriac.web.reads import Reads
from celeriac.web.site import Site
from celeriac.web.tokens import Role

Handler: TypeAlias = Callable[[Request], Response]
PLAIN = "text/plain; charset=utf-8"
TITLES = {
    400: "That address is wrong",
    404: "Not found",
    409: "That cannot be done now",
    413: "Too large",
    422: "That cannot be done",
    503: "Unavailable",
}


class Pages:
    """The pages of one server."""

    def __init__(self, site: Site, reads: Reads, poller: Poller) -> None:
        self._site, self._reads, self._poller = site, reads, poller
        self._notices = Notices()

    def routes(self) -> list[Route]:
        """Return the routes of Starlette."""
        made = [Route(view.path, self._handle(partial(self._show, view)), name=f"page-{view.name}") for view in VIEWS]
        made += [Route(f"/live{view.path}", partial(self._watch, view), name=f"live-{view.name}") for view in VIEWS]
        made.append(Route("/output", self._handle(self._show_output)))
        made.append(Route("/explain", self._handle(self._explain)))
        for name, action in ACTIONS.items():
            path = f"/confirm/{name}"
            made.append(Route(path, self._handle(partial(self._ask, action)), methods=["GET"], name=f"ask-{name}"))
            made.append(Route(path, partial(self._change, action), methods=["POST"], name=f"do-{name}"))
        made.append(Route(STATIC_PATH + "{name:path}", get_static))
        return made

    def _handle(self, handler: Handler) -> Handler:
        """Return a handler that answers with a page for an error, too."""

        @wraps(handler)
        def handle(request: Request) -> Response:
            try:
                return handler(request)
            except (WebError, CeleriacError) as error:
                return self.problem(request, error)

        return handle

    def problem(self, request: Request, error: WebError | CeleriacError) -> Response:
        """Return the page about an error."""
        status = error.status if isinstance(error, WebError) else 422 if isinstance(error, InvalidInput) else 503
        return self._answer(request, "problem.html", status, title=TITLES.get(status, "Error"), problem=str(error))

    def _answer(
        self, request: Request, template: str, status: int = 200, *, page: str = "", **values: object
    ) -> Response:
        has_login = self._site.rules.tokens is not None
        return answer(template, request.state.access, status, page=page, has_login=has_login, **values)

    def _show(self, view: View, request: Request) -> Response:
        values = view.values(self._reads, request.query_params, is_live=False)
        notice = self._notices.take(request.query_params.get("notice"))
        response = self._answer(request, f"{view.name}.html", page=view.name, notice=notice, **values)
        if values.get("is_counting") or values.get("is_counting_queues"):  # the next one who looks finds the numbers
            response.background = BackgroundTask(view.values, self._reads, request.query_params, is_live=True)
        return response

    async def _watch(self, view: View, request: Request) -> Response:
        """Send the live parts of a page whenever they have changed. All viewers of an address share one read."""
        role = request.state.access.role
        given = request.query_params
        chosen = sorted(item for item in given.multi_items() if item[0] in view.parameters)
        name = f"page {view.path} {role.value} {chosen}"
        return stream(self._poller, {"page": (name, partial(self._read_live, view, given, role))})

    def _read_live(self, view: View, given: QueryParams, role: Role) -> bytes:
        values = view.values(self._reads, given, is_live=True)
        html = render(view.live_template, is_operator=role is Role.OPERATOR, **values)
        return encode(json.dumps(html))

    def _show_output(self, request: Request) -> Response:
        parts = whole_output(self._reads, request.query_params)
        first = next(parts, b"")  # raises for an unknown task, before the response begins
        return StreamingResponse(chain([first], parts), media_type=PLAIN)

    def _explain(self, request: Request) -> Response:
        """Show the answer of the executor of a task, as a page: the page of the task takes a part of it."""
        return self._answer(
            request, "explain.html", page="task", **explanation_values(self._reads, request.query_params)
        )

    def _ask(self, action: Action, request: Request) -> Response:
        """Show the question before a change."""
        if request.state.access.role is not Role.OPERATOR:
            raise NotFound("only an operator can change something")
        target = target_of(request.query_params)
        question = action.ask(self._reads, target)
        csrf = request.state.access.csrf or ""
        address = f"{request.url.path}?{request.url.query}"
        return self._answer(
            request, "confirm.html", question=question, address=address, csrf=csrf, back=back_to(target)
        )

    async def _change(self, action: Action, request: Request) -> Response:
        """Make a change, and go back to the page. The gate has checked that an operator asks for it."""
        form = dict(parse_qsl((await read_limited(request, MAX_FORM)).decode("utf-8", "replace")))
        return await run_in_threadpool(self._handle(partial(self._perform, action, form)), request)

    def _perform(self, action: Action, form: Mapping[str, str], request: Request) -> Response:
        target = target_of(request.query_params)
        path = {"run": target.run, "key": target.key, "worker": target.worker}
        call = Call(
            site=self._site, reads=self._reads, access=request.state.access, path=path, query=None, via="the page"
        )
        notice = self._notices.add(action.perform(call, target, form))
        return RedirectResponse(back_to(target, notice), 303)


def is_for_people(request: Request) -> bool:
    """Return whether a browser asks for a page, and not a program for a value."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")


def not_found_page(request: Request) -> Response:
    """Return the page for an unknown address."""
    values = {"title": TITLES[404], "problem": "There is no such page.", "page": "", "has_login": False}
    return answer("problem.html", request.state.access, 404, **values)


def target_of(given: QueryParams) -> Target:
    return Target(run=given.get("run", ""), key=given.get("key", ""), worker=given.get("worker", ""))


def back_to(target: Target, notice: str | None = None) -> str:
    """Return the address of the page that shows a target."""
    path = "/task" if target.key else "/run" if target.run else "/"
    return link(path, run=target.run, key=target.key, notice=notice)
