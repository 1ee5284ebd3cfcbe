"""Environments in which Celeriac is installed with, and without, Airflow's own Celery provider."""

from __future__ import annotations

import os
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import celeriac
from celeriac import __version__

SOURCE = str(Path(celeriac.__file__).parents[1])
UPSTREAM = "apache_airflow_providers_celery"


def with_upstream(folder: Path) -> dict[str, str]:
    """Return the environment of a process in which both are installed."""
    distribution(UPSTREAM)
    return {"PYTHONPATH": os.pathsep.join([str(write_distribution(folder)), SOURCE])}


def without_upstream(folder: Path) -> dict[str, str]:
    """Return the environment for `python -S`: every installed package but upstream's."""
    packages = folder / "packages"
    packages.mkdir()
    for path in map(Path, {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        for entry in path.iterdir():
            if not entry.name.startswith((UPSTREAM, "celeriac")) and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    paths = [str(write_distribution(folder)), str(packages), SOURCE]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def write_distribution(folder: Path) -> Path:
    """Write the metadata that an installer would write, for a Celeriac that runs from its source."""
    path = folder / "metadata"
    info = path / f"celeriac-{__version__}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: celeriac\nVersion: {__version__}\n")
    (info / "entry_points.txt").write_text(
        "[apache_airflow_provider]\nprovider_info = celeriac.airflow.provider:get_provider_info\n\n"
        "[airflow.plugins]\nceleriac = celeriac.airflow.plugin:CeleriacPlugin\n"
    )
    return path
