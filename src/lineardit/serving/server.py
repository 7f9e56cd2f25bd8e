"""A server that runs until it is told to stop, then finishes what it accepted."""

import asyncio
import contextlib
import functools
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lineardit.config.serving import ServingConfig
from lineardit.errors import InputError
from lineardit.serving.app import create_app
from lineardit.serving.engine import Engine
from lineardit.serving.guard import Application
from lineardit.serving.metrics import Metrics

SHORTEST_KEY = 16
_CONNECTIONS = 1000
_LAST_WORDS = 5.0


def serve(
    config: ServingConfig,
    key: str | None = None,
    *,
    announce: Callable[[str, Engine], None] = lambda url, engine: None,
    command: Sequence[str] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends at once.

    `announce` is told the address once requests are taken. `command` starts a worker, as in `Engine`.

    Raises:
        InputError: the address is not to be had, or others reach it and there is no key.
        LineardiTError: the model does not load.
    """
    check_exposure(config.host, key)
    asyncio.run(_serve(config, key, announce, command))


def check_exposure(host: str, key: str | None) -> None:
    """Let nobody be served by accident. Raises `InputError`."""
    if key is not None and (
        len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key
    ):
        raise InputError(
            f"the API key is not of {SHORTEST_KEY} or more plain characters. "
            'Make one with python -c "import secrets; print(secrets.token_urlsafe(32))".'
        )
    if key is None and not _is_loopback(host):
        raise InputError(
            f"host={host} can be reached from other machines, which needs an API key. "
            "Give --api-key-file FILE or set LINEARDIT_API_KEY, or use 127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _serve(
    config: ServingConfig,
    key: str | None,
    announce: Callable[[str, Engine], None],
    command: Sequence[str] | None,
) -> None:
    listener = _listen(config)
    metrics = Metrics()
    engine = Engine(config, metrics, command)
    try:
        await engine.start()
        app = create_app(engine, metrics, key)
        await _Server(app, config, engine, announce).serve(sockets=[listener])
    finally:
        listener.close()
        await engine.stop()


def _listen(config: ServingConfig) -> socket.socket:
    """The address, taken before the model is loaded: if that fails it should fail at once."""
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        why = error.strerror or "it is no address"
        raise InputError(
            f"host={config.host} port={config.port} cannot be listened on ({why}). Choose another --port."
        ) from None


def free_port(config: ServingConfig) -> int:
    """The port to listen on, chosen if it is 0. Raises `InputError` where another has it."""
    with _listen(config) as listener:
        port: int = listener.getsockname()[1]
    return port


class _Connection(H11Protocol):
    """Closed where the head of a request is not there in time: uvicorn waits for as long as it takes.

    It counts connections, silent ones too, so that enough of them would keep everybody else out.
    """

    def __init__(self, seconds: float, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seconds = seconds
        self._head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_nothing()

    def on_response_complete(self) -> None:
        self._expect_head()  # first, since the next request may have come already
        super().on_response_complete()

    def _expect_head(self) -> None:
        self._expect_nothing()
        self._head = self.loop.call_later(self._seconds, self.timeout_keep_alive_handler)

    def _expect_nothing(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class _Server(uvicorn.Server):
    """uvicorn, with an end in which nothing that was accepted is lost."""

    def __init__(
        self, app: Application, config: ServingConfig, engine: Engine, announce: Callable[[str, Engine], None]
    ) -> None:
        options = uvicorn.Config(
            cast(Any, app),
            http=cast(Any, functools.partial(_Connection, config.limits.body_seconds)),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=int(config.drain_seconds + _LAST_WORDS),
        )
        super().__init__(options)
        self._engine, self._announce, self._drain_seconds = engine, announce, config.drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or []:
            host, port = each.getsockname()[:2]
            self._announce(
                f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", self._engine
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        draining = asyncio.create_task(self._engine.drain(self._drain_seconds))
        closing = asyncio.create_task(self._close_idle())
        try:
            await super().shutdown(sockets)
        finally:
            draining.cancel()
            closing.cancel()

    async def _close_idle(self) -> None:
        """Close idle connections again and again: one that was just being accepted is not there at first.

        After a second signal cut all of them: from Python 3.12 on a closed server waits for its connections.
        """
        while True:
            await asyncio.sleep(0.2)
            for connection in list(self.server_state.connections):
                if self.force_exit and connection.transport is not None:
                    connection.transport.abort()
                else:
                    connection.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal drains, the second ends at once; afterwards they mean what they meant before."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._told) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told(self, number: int, frame: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
