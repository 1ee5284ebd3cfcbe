"""Decompress results, up to a limit: a value of 1 MB can become 1 GB.

Celery 5.7 compresses results if `result_compression` is set. A mark and the method precede such a result.
"""

from __future__ import annotations

from celeriac.broker.compression import DECOMPRESSORS, decompress

MARK = b"\x00celery-compressed\x00"
MAX_SIZE = 16 * 2**20  # bytes of a result; ours have the last lines of two streams


def limited(value: bytes) -> bytes:
    """Return a value, decompressed if it is marked. Raise `ValueError` if it is too large. A value that was compressed
    with another method stays as it is."""
    check_size(value)
    if not value.startswith(MARK):
        return value
    name, _, body = value[len(MARK) :].partition(b"\x00")
    method = name.decode(errors="replace")
    if method not in DECOMPRESSORS:
        return value
    plain = decompress(body, method, MAX_SIZE)
    if len(plain) > MAX_SIZE:
        raise ValueError(f"the result has more than {MAX_SIZE:,} bytes when it is decompressed")
    return plain


def check_size(value: bytes) -> None:
    """Raise `ValueError` for a value that would cost too much time and memory to decode."""
    if len(value) > MAX_SIZE:
        raise ValueError(f"the result has {len(value):,} bytes")
