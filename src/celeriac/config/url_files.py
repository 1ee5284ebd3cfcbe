"""Settings for a file that holds a URL: a command line and an environment are easier to read for others than a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from celeriac.errors import InvalidConfig
from celeriac.secret_variables import SUFFIX as SUFFIX
from celeriac.secret_variables import URL_SETTINGS as URL_SETTINGS

MAX_SIZE = 65_536  # bytes of a file with a URL


class UrlFile(str):
    """The path of a file that holds a URL, given in place of the URL."""

    __slots__ = ()


def read_url(path: str, origin: str) -> str:
    """Return the one line in a file. Raises `InvalidConfig`, without the content of the file."""
    try:
        with Path(path).open("rb") as file:
            lines = [line.strip() for line in file.read(MAX_SIZE).decode().splitlines()]
    except (OSError, ValueError):
        raise InvalidConfig(origin, f"{path!r} cannot be read", "name a readable text file") from None
    urls = [line for line in lines if line and not line.startswith("#")]
    return one_of(urls, path, origin)


def one_of(urls: Sequence[str], path: str, origin: str) -> str:
    if len(urls) != 1:
        problem = f"{path!r} has {len(urls)} lines, not one" if urls else f"{path!r} is empty"
        raise InvalidConfig(origin, problem, "write the URL into it, in one line")
    return urls[0]
