"""Pickles as Celery before 5.7 keeps results in a database, whatever the serializer: plain data, and nothing that runs.

To unpickle more than plain data is to run what somebody wrote into that database.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

from celeriac.task.result import Reason

FIRST_BYTE = b"\x80"  # of every pickle of Celery's
PICKLE = "application/x-python-serialize"
KNOWN = {(Reason.__module__, Reason.__qualname__): Reason}
"""What `execute_command` puts beside plain data."""


class PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds more than plain data: {module}.{name}") from None


dumps = pickle.dumps


def loads(value: bytes) -> Any:
    """Raises `pickle.UnpicklingError` for anything but plain data."""
    return PlainUnpickler(io.BytesIO(value)).load()


def decode(value: bytes | None, decode_other: Callable[[bytes], Any]) -> Any:
    """Of a column where there may be pickles from before."""
    if value is None:
        return None
    return loads(value) if value.startswith(FIRST_BYTE) else decode_other(value)
