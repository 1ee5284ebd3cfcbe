"""An environment with the built wheel and what the wheel requires, and nothing else. It needs no package index.

pyproject.toml ─► wheel ─► Requires-Dist, with extras ─► the same packages of the tests' own environment
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")


def build(kind: str, folder: Path, source: Path = ROOT) -> Path:
    """Build a wheel ("wheel") or a source distribution ("sdist"), and return the file."""
    call(UV, "build", "--quiet", f"--{kind}", "--no-build-isolation", "--python", sys.executable, "-o", folder, source)
    [built] = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def new_environment(folder: Path, wheel: Path, extras: Iterable[str] = ()) -> Path:
    """Install a wheel with what it requires. Return the folder of the programs."""
    call(UV, "venv", "--quiet", "--python", sys.executable, folder)
    programs = folder / "bin"
    call(UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", programs / "python", wheel)
    [packages] = folder.glob("lib/python*/site-packages")
    [metadata] = packages.glob("celeriac-*.dist-info")
    for each in required_by(PathDistribution(metadata), set(extras), {}):
        link_files(each, packages)
    return programs


def required_by(package: Distribution, extras: set[str], seen: dict[str, set[str]]) -> Iterator[Distribution]:
    """Yield each package that a package requires, directly or not, as it is in the environment of the tests."""
    for requirement in map(Requirement, package.requires or ()):
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        name = canonicalize_name(requirement.name)
        required = package if name == canonicalize_name(package.name) else distribution(name)
        is_new = name not in seen
        if is_new or requirement.extras - seen[name]:
            seen[name] = seen.get(name, set()) | requirement.extras
            if is_new and required is not package:
                yield required
            yield from required_by(required, seen[name], seen)


def link_files(package: Distribution, packages: Path) -> None:
    """Link the files of a package into another environment, without its programs."""
    for file in package.files or ():
        source, target = Path(str(package.locate_file(file))), packages / file
        if ".." in file.parts or file.suffix == ".pyc" or not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(source)


def call(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must succeed. Return what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    ended = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
