"""Read the pickles that Celery before 5.7 stores in a database, with every serializer.

Only plain data is unpickled. A pickle of anything else could run code that was written into that database.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

from celeriac.task.result import Reason

FIRST_BYTE = b"\x80"  # of every pickle that Celery writes
PICKLE = "application/x-python-serialize"
ALLOWED = {(Reason.__module__, Reason.__qualname__): Reason}
"""Classes that `execute_command` returns beside plain data."""


class PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds more than plain data: {module}.{name}") from None


dumps = pickle.dumps


def loads(value: bytes) -> Any:
    """Raise `pickle.UnpicklingError` for anything but plain data."""
    return PlainUnpickler(io.BytesIO(value)).load()


def decode(value: bytes | None, decode_other: Callable[[bytes], Any]) -> Any:
    """Decode a column that may still hold older pickles. `decode_other` decodes all other values."""
    if value is None:
        return None
    return loads(value) if value.startswith(FIRST_BYTE) else decode_other(value)
