"""Templates and static files."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from celeriac import __version__
from celeriac.web.access import Access
from celeriac.web.errors import NotFound
from celeriac.web.page import display
from celeriac.web.tokens import Role

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parents[1] / "static"
STATIC_PATH = "/static/"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
LONG = "private, max-age=31536000, immutable"
"""A static file is kept: its address changes with its content."""


@cache
def environment() -> Environment:
    """Return the templates, with what they call."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=display.finalize,
    )
    for function in (
        display.age,
        display.command_text,
        display.duration,
        display.first_line,
        display.iso_time,
        display.multiline,
        display.number,
        display.rate,
        display.raw,
        display.shell_word,
        display.size,
        display.utc_time,
    ):
        made.filters[function.__name__] = function
    made.globals.update(link=display.link, static=static_link, version=__version__)
    return made


def render(template: str, **values: Any) -> str:
    """Return a template with its values."""
    return environment().get_template(template).render(values)


def answer(template: str, access: Access, status: int = 200, **values: Any) -> Response:
    """Return a page for one viewer."""
    viewer = {"is_operator": access.role is Role.OPERATOR, "role": access.role.value}
    return HTMLResponse(encode(render(template, **viewer, **values)), status)


def encode(text: str) -> bytes:
    """Return HTML as bytes. A lone surrogate, which could be in a command, is shown as a question mark."""
    return text.encode("utf-8", "replace")


@cache
def static_files() -> dict[str, tuple[bytes, str]]:
    """Return the static files and their types, by their paths."""
    return {
        file.relative_to(STATIC).as_posix(): (file.read_bytes(), TYPES[file.suffix])
        for file in sorted(STATIC.rglob("*"))
        if file.suffix in TYPES
    }


@cache
def static_link(name: str) -> str:
    """Return the address of a static file. It changes when the file does."""
    return f"{STATIC_PATH}{name}?v={sha256(static_files()[name][0]).hexdigest()[:12]}"


def get_static(request: Request) -> Response:
    """Return a static file. Raises `NotFound`."""
    file = static_files().get(request.path_params["name"])
    if file is None:
        raise NotFound("there is no such file")
    return Response(file[0], media_type=file[1], headers={"cache-control": LONG})
