"""The frames of a message for RabbitMQ: of each kind py-amqp writes one, which is cut and filled in for the others.

    method frame │ header frame: sizes, properties, headers: size, … id … id … arguments in words …, … id │ body frames

What is not of a kind is written by py-amqp whole.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Any

from amqp import Message, spec
from amqp.method_framing import frame_writer
from amqp.serialization import dumps

from celeriac.broker.message import MARK_ID, MARK_REPR, MARK_SIGNATURE, MessageTemplate, Published
from celeriac.broker.template import Gap, Template, places

METHOD_KIND, HEADER_KIND, BODY_KIND = 1, 2, 3
FRAME = Struct(">BHI")  # kind, channel, size
HEADER = Struct(">BHIHHQ")  # a frame; and the class, the weight and the size of the content
SIZE = Struct(">I")
END = b"\xce"
AROUND = FRAME.size + len(END)
BASIC = spec.Basic.CLASS_ID
LONGEST_ID = 255  # bytes
SAMPLE_ID, SAMPLE_WORDS, SAMPLE_SIGNATURE, SAMPLE_BODY = "an id", "()", "signed", b"[]"


class FrameWriter:
    """For one channel."""

    def __init__(self, channel: Any) -> None:
        self.channel_id: int = channel.channel_id
        self.frame_max: int = channel.connection.frame_max
        self._frames: list[bytes] = []
        self._write_frames = frame_writer(channel.connection, self)

    def write(self, frames: bytes) -> None:
        """To py-amqp this is the socket."""
        self._frames.append(bytes(frames))

    def frames(self, published: Published, *, mandatory: bool) -> bytes:
        """Raises `TooLong`."""
        self._frames.clear()
        try:
            where = dumps("Bssbb", (0, published.exchange, published.routing_key, mandatory, False))
            self._write_frames(METHOD_KIND, self.channel_id, spec.Basic.Publish, where, published.message)
        except error:
            raise TooLong() from None
        if len(self._frames) > 1 and max(map(len, self._frames)) > self.frame_max:  # else all are in one write
            raise TooLong()
        return b"".join(self._frames)

    def form(self, blank: MessageTemplate) -> AmqpTemplate | None:
        """None if it does not say what py-amqp says of a message with another id."""
        message, exchange, routing_key = blank.published
        form = AmqpTemplate(self, blank.published)
        names = {MARK_ID: SAMPLE_ID, MARK_REPR: SAMPLE_WORDS, MARK_SIGNATURE: SAMPLE_SIGNATURE}
        sample = Published(Message(SAMPLE_BODY, **renamed(message.properties, names)), exchange, routing_key)
        as_it_is = self.frames(sample, mandatory=True)
        filled = form.filled(SAMPLE_ID, SAMPLE_WORDS, SAMPLE_BODY, SAMPLE_SIGNATURE)
        return form if filled == as_it_is else None


class AmqpTemplate:
    def __init__(self, writer: FrameWriter, published: Published) -> None:
        self._channel_id, self._frame_max = writer.channel_id, writer.frame_max
        written = writer.frames(published, mandatory=True)
        header = AROUND + size_at(written, 3)
        end = header + AROUND + size_at(written, header + 3)
        headers = dumps("F", [published.message.properties.get("application_headers", {})])
        table = written.index(headers, header, end)
        after = table + len(headers)
        mark, words, signature = MARK_ID.encode(), MARK_REPR.encode(), MARK_SIGNATURE.encode()
        ids = [*places(written, long_string(mark), 2, table, after)]
        texts = [*places(written, long_string(words), 3, table, after)]
        short_ids = [*places(written, short_string(mark), 4, after, end)]
        signatures = [*places(written, long_string(signature), 5, table, after)]
        sizes = [Gap(header, header + HEADER.size, 0), Gap(table, table + SIZE.size, 1)]
        self._form = Template(written[:end], [*sizes, *ids, *texts, *short_ids, *signatures])
        self._ids, self._texts, self._short_ids = len(ids), len(texts), len(short_ids)
        self._signatures = len(signatures)
        marks = self._ids * len(mark) + self._texts * len(words) + self._signatures * len(signature)
        self._table = size_at(written, table) - marks
        """The size of the headers without what is filled in."""

        self._around_table = end - header - AROUND - size_at(written, table) - self._short_ids * len(mark)

    def filled(self, task_id: str, words: str, body: bytes, signature: str) -> bytes:
        """Raises `TooLong`, and `UnicodeEncodeError` for text that is not Unicode."""
        name, text = task_id.encode(), words.encode()
        if len(name) > LONGEST_ID:
            raise TooLong()
        table = self._table + self._ids * len(name) + self._texts * len(text) + self._signatures * len(signature)
        header = self._around_table + table + self._short_ids * len(name)
        if header > self._frame_max - AROUND:
            raise TooLong()
        sizes = HEADER.pack(HEADER_KIND, self._channel_id, header, BASIC, 0, len(body)), SIZE.pack(table)
        texts = long_string(name), long_string(text), short_string(name), long_string(signature.encode())
        frames = self._form.filled((*sizes, *texts))
        room = self._frame_max - AROUND
        if len(body) <= room:
            return b"".join((frames, FRAME.pack(BODY_KIND, self._channel_id, len(body)), body, END))
        pieces = [frames]
        for first in range(0, len(body), room):
            piece = body[first : first + room]
            pieces += FRAME.pack(BODY_KIND, self._channel_id, len(piece)), piece, END
        return b"".join(pieces)


class TooLong(ValueError):
    def __init__(self) -> None:
        super().__init__("its key, id or queue is longer than RabbitMQ takes")


def long_string(text: bytes) -> bytes:
    return SIZE.pack(len(text)) + text


def short_string(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def size_at(written: bytes, at: int) -> int:
    size: int = SIZE.unpack_from(written, at)[0]
    return size


def renamed(value: Any, names: dict[str, str]) -> Any:
    """With each name replaced, wherever it stands."""
    if isinstance(value, str):
        for name, other in names.items():
            value = value.replace(name, other)
        return value
    if isinstance(value, dict):
        return {key: renamed(one, names) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [renamed(one, names) for one in value]
    return value
