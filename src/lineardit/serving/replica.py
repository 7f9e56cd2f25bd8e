"""The whole service as one ASGI application that starts and stops itself: what a foreign server holds."""

from collections.abc import Callable, Sequence

from lineardit.config.serving import ServingConfig
from lineardit.errors import LineardiTError
from lineardit.serving.app import create_app
from lineardit.serving.engine import Engine
from lineardit.serving.guard import Application, Receive, Scope, Send
from lineardit.serving.metrics import Metrics


class Replica:
    """An engine with its workers, started and drained by the messages of ASGI's lifespan.

    Any ASGI server can run it; each replica has its own queue, and knows nothing of the others.
    """

    def __init__(self, config: ServingConfig, key: str | None, command: Sequence[str] | None = None) -> None:
        """`key` and `command` as in `lineardit.serving.server.serve`."""
        self._config, self._key, self._command = config, key, command
        self._engine: Engine | None = None
        self._app: Application | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or start and stop."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                try:
                    await self._start()
                except LineardiTError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif kind == "lifespan.shutdown":
                await self._stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _start(self) -> None:
        metrics = Metrics()
        engine = Engine(self._config, metrics, self._command)
        await engine.start()
        self._engine, self._app = engine, create_app(engine, metrics, self._key)

    async def _stop(self) -> None:
        if self._engine is not None:
            await self._engine.drain(self._config.drain_seconds)
            await self._engine.stop()


def builder(config: ServingConfig, key: str | None) -> Callable[[], Replica]:
    """What makes a replica where it is to run: a function, so that only settings travel there."""

    def build() -> Replica:
        return Replica(config, key)

    return build
