"""Read the pickles that Celery before 5.7 stores in a database, with every serializer.

Only plain data is unpickled. A pickle of anything else could run code that was written into that database. And a
pickle is scanned before it is read, because a few bytes of it can cost gigabytes, or minutes:

- Sizes are checked against the bytes that are there, and numbers in the memo against the values that came before.
- Only text and classes may be used twice. Containers that contain each other twice would double at each level.
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

MAX_SIZE = 16 * 2**20  # bytes
MAX_STEPS = 10_000  # opcodes; a report of a command has some 200

# — opcodes, by the bytes that follow —

NO_ARGUMENT = frozenset(
    b"".join((pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE))
    + b"".join((pickle.MARK, pickle.SETITEM, pickle.SETITEMS, pickle.APPEND, pickle.APPENDS, pickle.TUPLE))
    + b"".join((pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.REDUCE))
)
FIXED_SIZE = {
    pickle.PROTO[0]: 1,
    pickle.BININT1[0]: 1,
    pickle.BININT2[0]: 2,
    pickle.BININT[0]: 4,
    pickle.BINFLOAT[0]: 8,
    pickle.FRAME[0]: 8,
}
SIZED_TEXT = {
    pickle.SHORT_BINUNICODE[0]: 1,
    pickle.SHORT_BINBYTES[0]: 1,
    pickle.BINUNICODE[0]: 4,
    pickle.BINBYTES[0]: 4,
    pickle.BINUNICODE8[0]: 8,
    pickle.BINBYTES8[0]: 8,
}
"""The number of bytes of the size; the text or the bytes follow it."""

GETS = {pickle.BINGET[0]: 1, pickle.LONG_BINGET[0]: 4}
PUTS = {pickle.BINPUT[0]: 1, pickle.LONG_BINPUT[0]: 4}
LONG1, GLOBAL, STACK_GLOBAL = pickle.LONG1[0], pickle.GLOBAL[0], pickle.STACK_GLOBAL[0]
MEMOIZE, STOP = pickle.MEMOIZE[0], pickle.STOP[0]


def check(value: bytes) -> None:
    """Raise `pickle.UnpicklingError` for a pickle that is not plain data of a bounded size."""
    if len(value) > MAX_SIZE:
        raise pickle.UnpicklingError(f"it has {len(value):,} bytes")
    at, is_reusable = 0, False
    memo: list[bool] = []
    """For each value of the memo, whether it may be used again."""

    for _ in range(MAX_STEPS):
        if at >= len(value):
            raise pickle.UnpicklingError("it is truncated")
        code = value[at]
        at += 1
        if code in NO_ARGUMENT:
            is_reusable = False
        elif code in SIZED_TEXT:
            at, is_reusable = after_sized(value, at, SIZED_TEXT[code]), True
        elif code == MEMOIZE or code in PUTS:
            at = after_put(value, at, PUTS.get(code, 0), len(memo))
            memo.append(is_reusable)
        elif code in GETS:
            end = at + GETS[code]
            number, at = int.from_bytes(value[at:end], "little"), end
            if number >= len(memo) or not memo[number]:
                raise pickle.UnpicklingError("it uses a value twice")
            is_reusable = True
        elif code in FIXED_SIZE:
            at, is_reusable = at + FIXED_SIZE[code], False
        elif code == LONG1:
            at, is_reusable = after_sized(value, at, 1), False
        elif code == STACK_GLOBAL:
            is_reusable = True
        elif code == GLOBAL:
            at, is_reusable = after_lines(value, at), True
        elif code == STOP:
            return
        else:
            raise pickle.UnpicklingError(f"it holds more than plain data: opcode {bytes((code,))!r}")
    raise pickle.UnpicklingError(f"it has more than {MAX_STEPS:,} values")


def after_sized(value: bytes, at: int, width: int) -> int:
    """Return the position after a size of `width` bytes and as many bytes as it says."""
    end = at + width + int.from_bytes(value[at : at + width], "little")
    if end > len(value):
        raise pickle.UnpicklingError("it is truncated")
    return end


def after_put(value: bytes, at: int, width: int, expected: int) -> int:
    """Return the position after the number of the next value of the memo."""
    if width and int.from_bytes(value[at : at + width], "little") != expected:
        raise pickle.UnpicklingError("it numbers its values in an unusual order")
    return at + width


def after_lines(value: bytes, at: int) -> int:
    """Return the position after two lines."""
    for _ in range(2):
        at = value.find(b"\n", at) + 1
        if at == 0:
            raise pickle.UnpicklingError("it is truncated")
    return at


class PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds more than plain data: {module}.{name}") from None


dumps = pickle.dumps


def loads(value: bytes) -> Any:
    """Raise `pickle.UnpicklingError`, or another error, for anything but plain data of a bounded size."""
    check(value)
    return PlainUnpickler(io.BytesIO(value)).load()


def decode(value: bytes | None, decode_other: Callable[[bytes], Any]) -> Any:
    """Decode a column that may still hold older pickles. `decode_other` decodes all other values."""
    if value is None:
        return None
    return loads(value) if value.startswith(FIRST_BYTE) else decode_other(value)
