"""Decompress results, up to a limit: a value of 1 MB can become 1 GB.

Celery 5.7 compresses results if `result_compression` is set. A mark and the method precede such a result.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

MARK = b"\x00celery-compressed\x00"
MAX_SIZE = 16 * 2**20  # bytes of a result; ours have the last lines of two streams

DECOMPRESSORS: dict[bytes, Callable[[], Any]] = {
    b"application/x-gzip": zlib.decompressobj,
    b"application/x-bz2": bz2.BZ2Decompressor,
    b"application/x-lzma": lzma.LZMADecompressor,
}
"""The methods whose output can be limited; by the name that Kombu gives them."""


def limited(value: bytes) -> bytes:
    """Return a value, decompressed if it is marked. Raise `ValueError` if it is too large. A value that was compressed
    with another method stays as it is."""
    check_size(value)
    if not value.startswith(MARK):
        return value
    method, _, body = value[len(MARK) :].partition(b"\x00")
    if method not in DECOMPRESSORS:
        return value
    plain: bytes = DECOMPRESSORS[method]().decompress(body, MAX_SIZE + 1)
    if len(plain) > MAX_SIZE:
        raise ValueError(f"the result has more than {MAX_SIZE:,} bytes when it is decompressed")
    return plain


def check_size(value: bytes) -> None:
    """Raise `ValueError` for a value that would cost too much time and memory to decode."""
    if len(value) > MAX_SIZE:
        raise ValueError(f"the result has {len(value):,} bytes")
