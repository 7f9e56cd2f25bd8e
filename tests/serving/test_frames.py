"""Frames: what was packed comes out, and nothing else does."""

import asyncio
import io
import json
import struct

import pytest

from lineardit.serving.frames import (
    LARGEST_MESSAGE,
    LARGEST_PAYLOAD,
    FrameError,
    pack,
    read_frame,
    receive_frame,
)

MESSAGES = [
    ({"type": "draw", "prompt": "ein Bär 🐻"}, b""),
    ({}, bytes(range(256)) * 300),
    ({"n": [1.5]}, b"x"),
]


async def received(content: bytes) -> list[object]:
    stream, found = asyncio.StreamReader(limit=64), []
    stream.feed_data(content)
    stream.feed_eof()
    while (frame := await receive_frame(stream)) is not None:
        found.append(tuple(frame))
    return found


def test_frames_come_out_as_they_went_in() -> None:
    content = b"".join(pack(*message) for message in MESSAGES)
    stream = io.BytesIO(content)
    assert [read_frame(stream) for _ in MESSAGES] == MESSAGES
    assert read_frame(stream) is None
    assert asyncio.run(received(content)) == MESSAGES


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 20, 40])
def test_a_stream_that_ends_within_a_frame_is_told_from_one_that_ends_after_it(cut: int) -> None:
    content = pack({"type": "picture", "row": 0}, b"12345")
    with pytest.raises(FrameError, match="ended in the middle"):
        read_frame(io.BytesIO(content[:cut]))
    with pytest.raises(FrameError, match="ended in the middle"):
        asyncio.run(received(content[:cut]))


@pytest.mark.parametrize(
    "content",
    [
        struct.pack(">II", LARGEST_MESSAGE + 1, 0),
        struct.pack(">II", 2, LARGEST_PAYLOAD + 1),
        struct.pack(">II", 4, 0) + b"{\"a\"",
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 2, 0) + b"\xff\xfe",
        struct.pack(">II", 200_000, 0) + b"[" * 200_000,
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused(content: bytes) -> None:
    with pytest.raises(FrameError):
        read_frame(io.BytesIO(content))
    with pytest.raises(FrameError):
        asyncio.run(received(content))


def test_numbers_that_json_has_not_are_not_sent() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        pack({"time": float("nan")})
    assert json.loads(pack({"time": 1.5})[8:]) == {"time": 1.5}
