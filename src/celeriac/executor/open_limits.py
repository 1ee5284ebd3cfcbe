"""Open the limits of an executor, which imports them only if it has some."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from celeriac.config.executor_config import Config
from celeriac.executor.interfaces import OpenPlaces

if TYPE_CHECKING:
    from celeriac.executor.limits import Limits


def open_limits(config: Config, open_places: OpenPlaces | None, clock: Callable[[], float]) -> Limits:
    """Return the limits of an executor that has some. Raise `InvalidConfig` if no store can keep their places."""
    from celeriac.executor.limits import Limits  # late: few runs have limits
    from celeriac.executor.places import LocalPlaces

    return Limits(config, LocalPlaces(clock) if open_places is None else open_places())
