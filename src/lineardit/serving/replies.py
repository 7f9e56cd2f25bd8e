"""What answers have in common: JSON, pictures in it, events one after the other, and clients that go away."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import Request, Response

from lineardit.serving.engine import Engine
from lineardit.serving.failures import late
from lineardit.serving.guard import Receive, Scope, Send
from lineardit.serving.metrics import Metrics
from lineardit.serving.pictures import brought_to, encode, read_initial
from lineardit.serving.schema import PictureFormat, Wish, ticket_for
from lineardit.serving.ticket import Picture, Pixels, Ticket


def json_reply(
    content: Mapping[str, Any] | list[dict[str, Any]],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer."""
    return Response(json.dumps(content), status, dict(headers or {}), "application/json")


async def datum(
    picture: Picture, pixels: Pixels, picture_format: PictureFormat, quality: int | None
) -> dict[str, Any]:
    """A picture as OpenAI's answers hold it, with its seed."""
    file = await asyncio.to_thread(encode, pixels, picture.settings, picture_format, quality)
    return {"b64_json": file, "seed": picture.settings["seed"]}


async def encoded(pixels: Pixels) -> str:
    """A PNG in base64, without settings."""
    return await asyncio.to_thread(encode, pixels)


async def accepted(
    engine: Engine, wish: Wish, initial: str | None = None, *, partials: int = 0, previews: bool = False
) -> Ticket:
    """Check a request against model and limits and queue it. Raises `Failure`.

    `initial` is a picture to start from in base64; it is decoded only if everything else is in order.
    """
    facts, limits = engine.model(wish.model), engine.config.limits
    ticket = ticket_for(wish, facts, limits, partials=partials, previews=previews)
    if initial is not None:
        engine.check_place(wish.count)
        picture = await asyncio.to_thread(read_initial, initial, limits)
        ticket = ticket_for(wish, facts, limits, shape=picture.size, partials=partials, previews=previews)
        size = ticket.pictures[0].settings["width"], ticket.pictures[0].settings["height"]
        pixels = await asyncio.to_thread(brought_to, picture, *size, wish.stretches)
        for each in ticket.pictures:
            each.initial = pixels
    engine.submit(ticket)
    return ticket


@asynccontextmanager
async def while_connected(
    request: Request, ticket: Ticket, engine: Engine, metrics: Metrics
) -> AsyncIterator[None]:
    """Give a request up when its client goes away, or when it takes too long."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if ticket.is_open:
            metrics.cancelled.inc()
        ticket.cancel()

    watcher = asyncio.create_task(watch())
    timer = asyncio.get_running_loop().call_later(engine.config.limits.seconds, ticket.fail, late())
    try:
        yield
    finally:
        watcher.cancel()
        timer.cancel()
        ticket.cancel()


class EventStream(Response):
    """Server-sent events. The source is closed whatever happens to the connection."""

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._chunks = chunks
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them as they come."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
