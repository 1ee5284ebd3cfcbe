"""The plugin of Airflow that shows Celeriac in Airflow's own page. Its entry point is in pyproject.toml.

Airflow's processes, also those that run tasks, import this module. So the first request imports the page itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, ClassVar

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

PREFIX = "celeriac"
TASK_ADDRESS = f"{PREFIX}/task/{{DAG_ID}}/{{RUN_ID}}/{{TASK_ID}}/{{MAP_INDEX}}"
"""Airflow's page fills in the names. It leaves MAP_INDEX as it is if the task is not mapped."""

RUN_ADDRESS = f"{PREFIX}/run/{{DAG_ID}}/{{RUN_ID}}"

Message = MutableMapping[str, Any]


class CeleriacPage:
    """The page as an ASGI application. It is imported and built when the first request arrives."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if self._app is None:
            from celeriac.airflow.page.app import make_page

            self._app = make_page()
        await self._app(scope, receive, send)


def is_configured() -> bool:
    """Return whether one of this Airflow's executors is Celeriac's."""
    return "celeriac.airflow" in (conf.get("core", "executor", fallback=None) or "")


def fastapi_apps() -> list[dict[str, Any]]:
    return [{"app": CeleriacPage(), "url_prefix": f"/{PREFIX}", "name": "Celeriac"}] if is_configured() else []


def external_views() -> list[dict[str, Any]]:
    """Return the entry in the navigation, and those of each run and each task instance. The addresses are relative."""
    if not is_configured():
        return []
    return [
        {"name": "Celeriac", "href": f"{PREFIX}/", "destination": "nav", "url_route": PREFIX},
        {"name": "Celeriac", "href": RUN_ADDRESS, "destination": "dag_run", "url_route": f"{PREFIX}-run"},
        {
            "name": "Celeriac",
            "href": TASK_ADDRESS,
            "destination": "task_instance",
            "url_route": f"{PREFIX}-task",
        },
    ]


class CeleriacPlugin(AirflowPlugin):
    """The overview in the navigation, and for runs and task instances why they wait and what became of them."""

    name = "celeriac"
    fastapi_apps: ClassVar[list[dict[str, Any]]] = fastapi_apps()
    external_views: ClassVar[list[dict[str, Any]]] = external_views()
