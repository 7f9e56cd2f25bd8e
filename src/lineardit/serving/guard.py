"""What stands before every request: who may ask, from where, how much may come, and how long it may take.

A browser is the danger on a machine of one's own: any page it shows can send requests to 127.0.0.1. So a
request must name this server as its host (a name of an attacker's that was pointed here does not), must not
come from a page of another origin, and must be JSON, which no plain form can send.
"""

import asyncio
import base64
import binascii
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from lineardit.config.serving import ServingConfig
from lineardit.serving.failures import Failure, crowded, late

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/healthz", "/readyz"})
"""Those that need no key: they tell nothing and do nothing."""
PICTURE_PATHS = frozenset({"/sdapi/v1/png-info", "/sdapi/v1/img2img", "/v1/images/edits"})
"""Those that are sent whole pictures."""
_SAFE = frozenset({"GET", "HEAD"})
_JSON = "application/json"
_GRACE = 5.0
_SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """An ASGI application in front of another."""

    def __init__(self, inner: Application, config: ServingConfig, key: str | None) -> None:
        self._inner, self._limits = inner, config.limits
        self._names = {"localhost", *(name.lower().rstrip(".") for name in config.names)}
        self._key = None if key is None else key.encode()
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._inner(scope, receive, send)
            return
        begun, reserved = False, 0

        async def send_safely(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = [(name.encode(), value.encode()) for name, value in _SECURITY.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            async with asyncio.timeout(self._limits.seconds + _GRACE):
                try:
                    headers = _headers(scope)
                    self._check(scope, headers)
                    most = self._most(scope, headers)
                    if scope["path"] in PICTURE_PATHS:
                        if self._held + most > self._limits.held:
                            raise crowded()
                        reserved = most
                        self._held += reserved
                    body = await self._body(headers, receive, most)
                except Failure as failure:
                    await answer(send_safely, failure)
                    return
                await self._inner(scope, _replayed(body, receive), send_safely)
        except TimeoutError:
            # A reader too slow to take its answer is left; uvicorn then closes the connection.
            if not begun:
                await answer(send_safely, late())
        finally:
            self._held -= reserved

    def _check(self, scope: Scope, headers: Mapping[str, list[str]]) -> None:
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._is_us(hosts[0]):
            message = "This server does not answer to that host name. Its --name says which it answers to."
            raise Failure(403, "wrong_host", message)
        method: str = scope["method"]
        if method not in _SAFE:
            origins = headers.get("origin", [])
            if any(origin.lower().partition("://")[2] != hosts[0].lower() for origin in origins):
                raise Failure(403, "wrong_origin", "Pages of other sites may not use this server.")
            if "cross-site" in headers.get("sec-fetch-site", []):
                raise Failure(403, "wrong_origin", "Pages of other sites may not use this server.")
        if scope["path"] not in OPEN_PATHS:
            self._check_key(headers.get("authorization", []))
        if any(kind.partition(";")[0].strip().lower() != _JSON for kind in headers.get("content-type", [])):
            raise _no_json()

    def _is_us(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and ":" in host else host
        try:
            # An address cannot have been pointed here by anybody's name server.
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name.lower().rstrip(".") in self._names
        return True

    def _check_key(self, given: list[str]) -> None:
        if self._key is None:
            return
        scheme, _, word = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        password = _password(word) if scheme.lower() == "basic" else b""
        said = word.strip().encode() if scheme.lower() == "bearer" else password
        if not hmac.compare_digest(said, self._key):
            raise Failure(401, "wrong_key", "This server needs its API key: Authorization: Bearer KEY.")

    def _most(self, scope: Scope, headers: Mapping[str, list[str]]) -> int:
        """Bytes that the body may have: what was declared, if that is not too much."""
        most = self._limits.picture_body if scope["path"] in PICTURE_PATHS else self._limits.body
        declared = headers.get("content-length", [""])[0]
        if not declared.isdecimal():
            return most
        if len(declared) > 12 or int(declared) > most:
            raise _too_long(most)
        return int(declared)

    async def _body(self, headers: Mapping[str, list[str]], receive: Receive, most: int) -> bytes:
        """All of the body at once, so that nothing behind this has to fear its length."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Failure(400, "cut_off", "The request ended too early.")
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_long(most)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Failure(408, "too_slow", "The request took too long to arrive.") from None
        if body and len(headers.get("content-type", [])) != 1:
            raise _no_json()
        return bytes(body)


def _too_long(most: int) -> Failure:
    return Failure(413, "too_long", f"A request has at most {most} bytes.")


def _no_json() -> Failure:
    return Failure(415, "no_json", "The body of a request is JSON: Content-Type: application/json.")


async def answer(send: Send, failure: Failure) -> None:
    """Say what is wrong."""
    body = json.dumps(failure.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers | failure.headers()).items()]
    await send({"type": "http.response.start", "status": failure.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _password(word: str) -> bytes:
    """Of basic authentication, whatever the user's name: scripts for AUTOMATIC1111 know no other way."""
    try:
        return base64.b64decode(word, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` as it was before the body was read."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again
