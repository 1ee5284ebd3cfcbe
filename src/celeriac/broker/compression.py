"""Decompress what others have written, up to a limit: a value of 1 MB can become 1 GB."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

LZMA_MEMORY = 64 * 1024 * 1024  # bytes that decompression may use besides its output

DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,  # Kombu writes zlib's format under this name
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lambda: lzma.LZMADecompressor(memlimit=LZMA_MEMORY),
}
"""The methods whose output can be limited, by the name that Kombu gives them."""

ERRORS = (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError)
"""The errors for content that a method cannot decompress."""


def decompress(data: bytes, method: str, max_size: int) -> bytes:
    """Return the content, cut off one byte after `max_size`. Raise one of `ERRORS`."""
    content: bytes = DECOMPRESSORS[method]().decompress(data, max_size + 1)
    return content
