"""The output of commands on its way from workers to an executor, through the store of the result backend.

    supervisor ─► worker: OutputSender ─► OutputStore ─► OutputCollector ─► files on the machine of the executor

The store holds at most `WINDOW` unread bytes of an attempt: the sender waits until the collector has read some of them.
Chunks that were read are removed; unread ones expire.
"""

from celeriac.backend.outputs.chunk import END, WINDOW, Chunk, OutputStore, Progress, Reply
from celeriac.backend.outputs.open import output_store_for

__all__ = ["END", "WINDOW", "Chunk", "OutputStore", "Progress", "Reply", "output_store_for"]
