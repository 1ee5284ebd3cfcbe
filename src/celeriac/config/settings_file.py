"""Find and read the file with the settings: celeriac.toml, or [tool.celeriac] of a pyproject.toml."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celeriac.config.ownership import BY_OTHERS, problem_of_file
from celeriac.errors import InvalidConfig

FILE_NAME = "celeriac.toml"
CONFIG_VARIABLE = "CELERIAC_CONFIG"


def settings_file(
    given_path: str | None, *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the file with settings, and what is in it: the given one, or the nearest. Raise `InvalidConfig`."""
    given_path = given_path or (os.environ if environment is None else environment).get(CONFIG_VARIABLE)
    return read_file(Path(given_path)) if given_path else read_nearest_file(folder or Path.cwd())


def read_file(path: Path) -> tuple[Path, Mapping[str, Any]]:
    table = read_table(path)
    if table is None:
        raise InvalidConfig(str(path), "has no table [tool.celeriac]", "add it, or name another file")
    return path, table


def read_nearest_file(folder: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """Return the first file with settings, in the folder or above it. Raises `InvalidConfig` if another user may have
    written it: it says where commands run."""
    for candidate in (folder, *folder.parents):
        for path in (candidate / FILE_NAME, candidate / "pyproject.toml"):
            if is_file(path) and (table := read_table(path)) is not None:
                if (problem := problem_of_file(path, writable=BY_OTHERS)) is not None:
                    raise InvalidConfig(str(path), problem, f"if you trust it, give --config {shlex.quote(str(path))}")
                return path, table
    return None


def is_file(path: Path) -> bool:
    """Return whether there is a file; False, too, if this user may not look into its folder."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_table(path: Path) -> Mapping[str, Any] | None:
    """Return the settings in a file; None for a pyproject.toml without [tool.celeriac]."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.name == "pyproject.toml" and "celeriac" not in text:
            return None
        import tomllib  # late, as most runs have no such file

        content = tomllib.loads(text)
    except OSError as error:
        raise InvalidConfig(str(path), str(error.strerror), "name a readable file") from None
    except ValueError as error:
        raise InvalidConfig(str(path), f"is not valid TOML: {error}", "correct it, or name another file") from None
    if path.name != "pyproject.toml":
        return content
    tools = content.get("tool", {})
    table = tools.get("celeriac") if isinstance(tools, dict) else None
    return table if isinstance(table, dict) else None
