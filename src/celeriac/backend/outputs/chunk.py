"""The chunks of an output, and the protocol of the stores that carry them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

WINDOW = 512 * 1024  # unread bytes of one attempt that a store holds
END = 0
"""The stream of the last chunk of an attempt, which is empty."""


class Chunk(Struct, frozen=True):
    """A part of the output of one attempt."""

    offset: int
    """The number of bytes of both streams before it."""

    stream: int
    """1 for standard output, 2 for standard error, or `END`."""

    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class Reply(Struct, frozen=True):
    """The reply to a chunk."""

    accepted: bool
    """Whether the store has the chunk now. Otherwise it is full, or expects another one."""

    read: int
    """How many bytes the reader has taken."""

    written: int
    """How many bytes the store has taken: the offset of the chunk that it expects."""

    is_superseded: bool = False
    """Whether a worker with a later claim writes the output of the attempt."""


class Progress(Struct, frozen=True):
    """How far the output of an attempt has come."""

    token: int
    """The fencing token of the claim under which it was written. Under a later claim, all begins anew."""

    read: int
    written: int


class OutputStore(Protocol):
    """Carries output. Attempts are named by the ids of their messages. A store raises the errors of its client."""

    def put(self, task_id: str, token: int, chunk: Chunk, *, read: int) -> Reply:
        """Add a chunk. `read` is how much the reader had taken, as far as the writer knows: a store that has lost the
        attempt begins anew there."""
        ...

    def progress(self, ids: Sequence[str]) -> Mapping[str, Progress]:
        """Return how far these attempts have come. Those that have written nothing are left out."""
        ...

    def chunks(self, ids: Sequence[str]) -> Mapping[str, tuple[Progress, Sequence[Chunk]]]:
        """Return the first unread chunks of these attempts."""
        ...

    def acknowledge(self, taken: Mapping[str, tuple[Progress, Sequence[Chunk]]]) -> None:
        """Remove chunks that `chunks` has returned, unless another reader has done it."""
        ...

    def delete(self, ids: Collection[str]) -> None: ...
    def close(self) -> None: ...
