"""The application: every route, behind the guard. No global state, so that any server can hold it."""

import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any, cast

from fastapi import FastAPI, Response
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from lineardit.serving.a1111 import add_a1111
from lineardit.serving.engine import Engine
from lineardit.serving.guard import Application, Guard, Receive, Scope, Send
from lineardit.serving.metrics import Metrics
from lineardit.serving.mistakes import add_failures
from lineardit.serving.openai import add_openai
from lineardit.serving.replies import json_reply

PAGE: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
"""The files of the page: read once, so that no request can name another."""


def create_app(engine: Engine, metrics: Metrics, key: str | None = None) -> Application:
    """The whole service around a started engine. `key` is asked for wherever something is told or done."""
    app = FastAPI(title="lineardit", docs_url=None, redoc_url=None)
    metrics.watch(engine)
    _add_page(app)
    _add_state(app, engine, metrics)
    add_openai(app, engine, metrics)
    add_a1111(app, engine, metrics)
    add_failures(app)
    guard = Guard(Counted(app, metrics), engine.config, key)
    proxies = list(engine.config.trusted_proxies)
    return cast(Application, ProxyHeadersMiddleware(cast(Any, guard), proxies)) if proxies else guard


def _add_page(app: FastAPI) -> None:
    folder = files("lineardit.serving") / "page"
    for path, (name, media_type) in PAGE.items():
        read = _reader((folder / name).read_bytes(), media_type)
        app.add_api_route(path, read, methods=["GET", "HEAD"], include_in_schema=False)


def _reader(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def read() -> Response:
        return Response(content, media_type=media_type)

    return read


def _add_state(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """The server runs."""
        return json_reply({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        """A request would be taken now."""
        ready = engine.is_ready
        headers = {} if ready else {"Retry-After": str(engine.retry_after())}
        return json_reply({"status": "ready" if ready else "not ready"}, 200 if ready else 503, headers)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


class Counted:
    """Counts answers and their seconds by route; whatever is no route is one."""

    def __init__(self, inner: FastAPI, metrics: Metrics) -> None:
        self._inner, self._metrics = inner, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        begun, status = time.monotonic(), 0

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._inner(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - begun)
