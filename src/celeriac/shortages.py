"""Errors that say that descriptors, processes or memory are exhausted. Imports the standard library alone."""

from __future__ import annotations

import errno
import os

SHORTAGES = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS})
NO_THREAD = "can't start new thread"  # a RuntimeError of Python
NOT_LOADED = ("Too many open files", "Cannot allocate memory", "failed to map segment")  # an ImportError of Python
LIMIT_OF_PROCESSES = "the limit of processes is reached"


def is_shortage(error: BaseException) -> bool:
    """Return whether an error says that descriptors, processes or memory are exhausted for now."""
    if isinstance(error, ImportError):
        return any(text in str(error) for text in NOT_LOADED)
    if isinstance(error, RuntimeError):
        return str(error) == NO_THREAD
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SHORTAGES)


def describe_shortage(error: BaseException) -> str:
    """Return the error as a person reads it."""
    number = getattr(error, "errno", None)
    if isinstance(error, RuntimeError):
        return "no thread can be started, for lack of processes or memory"
    if number == errno.EAGAIN:  # "temporarily unavailable" does not say which
        return LIMIT_OF_PROCESSES
    if isinstance(error, ImportError) and NOT_LOADED[0] in str(error):
        number = errno.EMFILE
    return os.strerror(number or errno.ENOMEM).lower()
