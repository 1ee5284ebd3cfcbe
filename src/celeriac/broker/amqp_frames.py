"""The AMQP frames of a message. py-amqp writes one message of each kind; its frames become a template.

    method frame │ header frame: sizes, properties, headers: size, … id … id … argsrepr …, … id │ body frames

A message that has no template is written by py-amqp.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Any

from amqp import Message, spec
from amqp.method_framing import frame_writer
from amqp.serialization import dumps

from celeriac.broker.message import (
    ARGSREPR_PLACEHOLDER,
    ID_PLACEHOLDER,
    SIGNATURE_PLACEHOLDER,
    MessageTemplate,
    Published,
)
from celeriac.broker.template import Gap, Template, find_gaps

METHOD_KIND, HEADER_KIND, BODY_KIND = 1, 2, 3
FRAME = Struct(">BHI")  # kind, channel, size
HEADER = Struct(">BHIHHQ")  # a frame; and the class, the weight and the size of the content
SIZE = Struct(">I")
END = b"\xce"
FRAME_OVERHEAD = FRAME.size + len(END)  # bytes
BASIC = spec.Basic.CLASS_ID
MAX_ID_LENGTH = 255  # bytes
SAMPLE_ID, SAMPLE_ARGSREPR, SAMPLE_SIGNATURE, SAMPLE_BODY = "an id", "()", "signed", b"[]"


class FrameWriter:
    """Writes the frames of messages for one channel."""

    def __init__(self, channel: Any) -> None:
        self.channel_id: int = channel.channel_id
        self.frame_max: int = channel.connection.frame_max
        self._frames: list[bytes] = []
        self._write_frames = frame_writer(channel.connection, self)

    def write(self, frames: bytes) -> None:
        """Keep the bytes that py-amqp writes: this object takes the place of py-amqp's socket."""
        self._frames.append(bytes(frames))

    def frames(self, published: Published, *, mandatory: bool) -> bytes:
        """Return the frames of a message as py-amqp writes them. Raise `MessageTooLong`."""
        self._frames.clear()
        try:
            arguments = dumps("Bssbb", (0, published.exchange, published.routing_key, mandatory, False))
            self._write_frames(METHOD_KIND, self.channel_id, spec.Basic.Publish, arguments, published.message)
        except error:
            raise MessageTooLong() from None
        if len(self._frames) > 1 and max(map(len, self._frames)) > self.frame_max:  # a single write has all frames
            raise MessageTooLong()
        return b"".join(self._frames)

    def compile(self, template: MessageTemplate) -> AmqpTemplate | None:
        """Return the template of the frames; None if it does not produce what py-amqp writes for a sample message."""
        message, exchange, routing_key = template.published
        compiled = AmqpTemplate(self, template.published)
        samples = {
            ID_PLACEHOLDER: SAMPLE_ID,
            ARGSREPR_PLACEHOLDER: SAMPLE_ARGSREPR,
            SIGNATURE_PLACEHOLDER: SAMPLE_SIGNATURE,
        }
        sample = Published(Message(SAMPLE_BODY, **replace_text(message.properties, samples)), exchange, routing_key)
        expected = self.frames(sample, mandatory=True)
        filled = compiled.fill(SAMPLE_ID, SAMPLE_ARGSREPR, SAMPLE_BODY, SAMPLE_SIGNATURE)
        return compiled if filled == expected else None


class AmqpTemplate:
    """The method frame and the header frame of a message, with gaps for the sizes, the id, the argsrepr and the
    signature."""

    def __init__(self, writer: FrameWriter, published: Published) -> None:
        self._channel_id, self._frame_max = writer.channel_id, writer.frame_max
        frames = writer.frames(published, mandatory=True)
        header_start = FRAME_OVERHEAD + size_at(frames, 3)
        header_end = header_start + FRAME_OVERHEAD + size_at(frames, header_start + 3)
        headers = dumps("F", [published.message.properties.get("application_headers", {})])
        table_start = frames.index(headers, header_start, header_end)
        table_end = table_start + len(headers)
        task_id, argsrepr = ID_PLACEHOLDER.encode(), ARGSREPR_PLACEHOLDER.encode()
        signature = SIGNATURE_PLACEHOLDER.encode()
        ids = [*find_gaps(frames, long_string(task_id), 2, table_start, table_end)]
        argsreprs = [*find_gaps(frames, long_string(argsrepr), 3, table_start, table_end)]
        short_ids = [*find_gaps(frames, short_string(task_id), 4, table_end, header_end)]
        signatures = [*find_gaps(frames, long_string(signature), 5, table_start, table_end)]
        sizes = [Gap(header_start, header_start + HEADER.size, 0), Gap(table_start, table_start + SIZE.size, 1)]
        self._template = Template(frames[:header_end], [*sizes, *ids, *argsreprs, *short_ids, *signatures])
        self._ids, self._argsreprs, self._short_ids = len(ids), len(argsreprs), len(short_ids)
        self._signatures = len(signatures)
        placeholders = self._ids * len(task_id) + self._argsreprs * len(argsrepr) + self._signatures * len(signature)
        self._table_size = size_at(frames, table_start) - placeholders
        """The size of the headers without the values of the gaps, in bytes."""

        self._properties_size = (
            header_end - header_start - FRAME_OVERHEAD - size_at(frames, table_start) - self._short_ids * len(task_id)
        )
        """The size of the header frame without the headers and the values of the gaps, in bytes."""

    def fill(self, task_id: str, argsrepr: str, body: bytes, signature: str) -> bytes:
        """Return the frames of a message. Raise `MessageTooLong`, and `UnicodeEncodeError` for lone surrogates."""
        id_bytes, repr_bytes, signature_bytes = task_id.encode(), argsrepr.encode(), signature.encode()
        if len(id_bytes) > MAX_ID_LENGTH:
            raise MessageTooLong()
        values_size = (
            self._ids * len(id_bytes) + self._argsreprs * len(repr_bytes) + self._signatures * len(signature_bytes)
        )
        table_size = self._table_size + values_size
        header_size = self._properties_size + table_size + self._short_ids * len(id_bytes)
        max_payload = self._frame_max - FRAME_OVERHEAD
        if header_size > max_payload:
            raise MessageTooLong()
        header = HEADER.pack(HEADER_KIND, self._channel_id, header_size, BASIC, 0, len(body))
        strings = long_string(id_bytes), long_string(repr_bytes), short_string(id_bytes), long_string(signature_bytes)
        frames = self._template.fill((header, SIZE.pack(table_size), *strings))
        if len(body) <= max_payload:
            return b"".join((frames, FRAME.pack(BODY_KIND, self._channel_id, len(body)), body, END))
        pieces = [frames]
        for start in range(0, len(body), max_payload):
            payload = body[start : start + max_payload]
            pieces += FRAME.pack(BODY_KIND, self._channel_id, len(payload)), payload, END
        return b"".join(pieces)


class MessageTooLong(ValueError):
    """A key, an id or a queue name does not fit into a frame."""

    def __init__(self) -> None:
        super().__init__("its key, id or queue name is too long for RabbitMQ; shorten it")


def long_string(text: bytes) -> bytes:
    return SIZE.pack(len(text)) + text


def short_string(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def size_at(frames: bytes, offset: int) -> int:
    size: int = SIZE.unpack_from(frames, offset)[0]
    return size


def replace_text(value: Any, replacements: dict[str, str]) -> Any:
    """Return nested data with each text replaced, wherever it occurs in a string."""
    if isinstance(value, str):
        for old, new in replacements.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, dict):
        return {key: replace_text(item, replacements) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_text(item, replacements) for item in value]
    return value
