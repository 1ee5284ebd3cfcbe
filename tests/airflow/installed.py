"""Celeriac as Airflow finds what is installed, with and without Airflow's own Celery provider beside it."""

from __future__ import annotations

import os
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import celeriac
from celeriac import __version__

SOURCE = str(Path(celeriac.__file__).parents[1])
OTHER = "apache_airflow_providers_celery"


def beside_the_other(folder: Path) -> dict[str, str]:
    """The environment for a process in which both are installed."""
    distribution(OTHER)
    return {"PYTHONPATH": os.pathsep.join([str(tell_of_celeriac(folder)), SOURCE])}


def without_the_other(folder: Path) -> dict[str, str]:
    """The environment for `python -S`: everything that is installed, but that one's name."""
    packages = folder / "packages"
    packages.mkdir()
    for path in map(Path, {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        for entry in path.iterdir():
            if not entry.name.startswith((OTHER, "celeriac")) and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    paths = [str(tell_of_celeriac(folder)), str(packages), SOURCE]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def tell_of_celeriac(folder: Path) -> Path:
    """What an installer writes, for a Celeriac that runs from its source."""
    place = folder / "told"
    info = place / f"celeriac-{__version__}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: celeriac\nVersion: {__version__}\n")
    (info / "entry_points.txt").write_text(
        "[apache_airflow_provider]\nprovider_info = celeriac.airflow.provider:get_provider_info\n"
    )
    return place
