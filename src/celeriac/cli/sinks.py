"""The sinks that the settings name. Their libraries are imported only for a sink that is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.config.settings import Settings
from celeriac.errors import InvalidConfig

if TYPE_CHECKING:
    from celeriac.sink_thread import Sink


def make_sinks(settings: Settings) -> list[Sink]:
    """Return the sinks of metrics and traces. Raises `InvalidConfig` if a library is missing or a variable is wrong."""
    sinks: list[Sink] = []
    wanted = settings.sinks
    if wanted.statsd is not None:
        check_module("statsd", "metrics", settings.values["statsd"].origin)
        from celeriac.telemetry.sinks.statsd import StatsdSink, TagForm

        sinks.append(StatsdSink(*wanted.statsd, TagForm(wanted.statsd_tags)))
    if wanted.opentelemetry:
        origin = settings.values["opentelemetry"].origin
        for module in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
            check_module(module, "opentelemetry", origin)
        from celeriac.telemetry.sinks.opentelemetry import OpenTelemetrySink

        sinks.append(OpenTelemetrySink())
    return sinks


def check_module(module: str, extra: str, origin: str) -> None:
    """Raise `InvalidConfig` if a library is not installed."""
    from importlib.util import find_spec

    try:
        is_installed = find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent
        is_installed = False
    if not is_installed:
        problem = f"needs the module {module}, which is not installed"
        raise InvalidConfig(origin, problem, f"pip install 'celeriac[{extra}]'")
