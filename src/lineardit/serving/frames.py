"""Messages between the server and its workers: a JSON object and raw bytes, never a pickle.

4 bytes   length of the JSON, big-endian
4 bytes   length of the bytes
JSON, then the bytes
"""

import asyncio
import json
import struct
from collections.abc import Mapping
from io import BufferedIOBase
from typing import Any, NamedTuple

_LENGTHS = struct.Struct(">II")
LARGEST_MESSAGE, LARGEST_PAYLOAD = 1 << 24, 1 << 30
"""The longest prompts that 64 pictures can have fit, and so do their initial pictures."""


class FrameError(Exception):
    """What came is no frame: the other side is broken, or ended in the middle of one."""


class Frame(NamedTuple):
    """One message."""

    message: dict[str, Any]
    payload: bytes


def pack(message: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """The bytes of a frame."""
    text = json.dumps(message, allow_nan=False).encode()
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


def read_frame(stream: BufferedIOBase) -> Frame | None:
    """The next frame, or None where the stream ends between two. Raises `FrameError`."""
    lengths = stream.read(_LENGTHS.size)
    if not lengths:
        return None
    text_length, payload_length = _checked(lengths)
    text, payload = stream.read(text_length), stream.read(payload_length)
    if len(text) < text_length or len(payload) < payload_length:
        raise FrameError("the stream ended in the middle of a frame")
    return Frame(_parsed(text), payload)


async def receive_frame(stream: asyncio.StreamReader) -> Frame | None:
    """As `read_frame`, without blocking."""
    try:
        lengths = await stream.readexactly(_LENGTHS.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise FrameError("the stream ended in the middle of a frame") from None
        return None
    text_length, payload_length = _checked(lengths)
    try:
        text = await stream.readexactly(text_length)
        payload = await stream.readexactly(payload_length)
    except asyncio.IncompleteReadError:
        raise FrameError("the stream ended in the middle of a frame") from None
    return Frame(_parsed(text), payload)


def _checked(lengths: bytes) -> tuple[int, int]:
    if len(lengths) < _LENGTHS.size:
        raise FrameError("the stream ended in the middle of a frame")
    text_length, payload_length = _LENGTHS.unpack(lengths)
    if text_length > LARGEST_MESSAGE or payload_length > LARGEST_PAYLOAD:
        raise FrameError(f"a frame of {text_length} and {payload_length} bytes is too long")
    return text_length, payload_length


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise FrameError("the message of a frame is no JSON") from None
    if not isinstance(message, dict):
        raise FrameError("the message of a frame is no JSON object")
    return message
