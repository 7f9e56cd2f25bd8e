"""The service as one ASGI application: it loads, answers, drains and stops by messages of the lifespan."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lineardit.cli.app import main
from lineardit.config.serving import ServingConfig
from lineardit.errors import InputError, LineardiTError
from lineardit.serving.cluster import Scale, serve_on_ray
from lineardit.serving.replica import Replica

PRETENDED = [sys.executable, str(Path(__file__).with_name("pretended_worker.py"))]


class Host:
    """A server of another make: it sends the messages of ASGI, and keeps the answers."""

    def __init__(self, device: str = "cpu", command: Sequence[str] = PRETENDED) -> None:
        self.replica = Replica(ServingConfig(devices=(device,)), None, command)
        self._told: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.life = asyncio.create_task(
            self.replica({"type": "lifespan"}, self._told.get, self.said.put)  # type: ignore[arg-type]
        )

    async def tell(self, kind: str) -> Any:
        await self._told.put({"type": kind})
        return await self.said.get()

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        headers = [(b"host", b"localhost"), (b"content-length", str(len(content)).encode())]
        headers += [(b"content-type", b"application/json")] if content else []
        scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "headers": headers}
        scope |= {"raw_path": path.encode(), "root_path": "", "query_string": b"", "scheme": "http"}
        scope |= {"client": ("127.0.0.1", 1), "server": ("localhost", 1)}
        sent = [{"type": "http.request", "body": content, "more_body": False}]
        answers: list[Any] = []

        async def receive() -> Any:
            if sent:
                return sent.pop()
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            answers.append(message)

        await self.replica(scope, receive, send)
        return answers[0]["status"], json.loads(b"".join(each.get("body", b"") for each in answers[1:]))


def test_it_loads_answers_and_drains() -> None:
    async def live() -> None:
        host = Host()
        assert (await host.tell("lifespan.startup"))["type"] == "lifespan.startup.complete"
        assert await host.ask("GET", "/readyz") == (200, {"status": "ready"})
        status, answer = await host.ask("POST", "/v1/images/generations", {"prompt": "a cat", "seed": 4})
        assert status == 200 and answer["data"][0]["seed"] == 4
        drawing = asyncio.create_task(host.ask("POST", "/v1/images/generations", {"prompt": "slow"}))
        while (await host.ask("GET", "/readyz"))[0] == 200 and not host.replica._engine.drawing:  # type: ignore[union-attr]
            await asyncio.sleep(0)
        assert (await host.tell("lifespan.shutdown"))["type"] == "lifespan.shutdown.complete"
        assert (await drawing)[0] == 200
        await host.life

    asyncio.run(asyncio.wait_for(live(), 60))


def test_a_model_that_does_not_load_is_said_to_the_host() -> None:
    async def live() -> None:
        host = Host("broken")
        said = await host.tell("lifespan.startup")
        assert said == {"type": "lifespan.startup.failed", "message": "there is no model"}
        await host.life

    asyncio.run(asyncio.wait_for(live(), 60))


@pytest.mark.parametrize(
    "scale", [(0, 1, 8.0, None), (3, 2, 8.0, None), (1, 1, 0.0, None), (1, 1, 8.0, -1.0)]
)
def test_a_scale_that_is_none_is_refused(scale: tuple[int, int, float, float | None]) -> None:
    with pytest.raises(InputError, match="replicas=|requests_per_replica"):
        serve_on_ray(ServingConfig(port=0), None, Scale(*scale))


def test_on_ray_as_well_others_are_not_let_in_without_a_key() -> None:
    with pytest.raises(InputError, match="needs an API key"):
        serve_on_ray(ServingConfig(host="0.0.0.0"), None, Scale(1, 1, 8.0, None))


@pytest.mark.parametrize(
    ("wanted", "running", "taken"),
    [
        (("127.0.0.1", 7861), ("127.0.0.1", 7861), True),
        (("127.0.0.1", 0), ("127.0.0.1", 7861), True),
        (("127.0.0.1", 7860), ("127.0.0.1", 7861), False),
        (("127.0.0.1", 7861), ("0.0.0.0", 7861), False),
        (("127.0.0.1", 0), None, True),
    ],
)
def test_where_ray_serve_listens_already_another_address_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    wanted: tuple[str, int],
    running: tuple[str, int] | None,
    taken: bool,
) -> None:
    started: list[dict[str, Any]] = []
    options = None if running is None else SimpleNamespace(host=running[0], port=running[1])
    client = None if options is None else SimpleNamespace(http_config=options)

    class RayError(Exception):
        """Of a cluster that is not there."""

    def run(*application: Any, **options: Any) -> None:
        raise RayError

    serve = SimpleNamespace(
        start=lambda **options: started.append(options["http_options"]),
        run=run,
        deployment=lambda made: SimpleNamespace(options=lambda **_: SimpleNamespace(bind=lambda: made)),
        ingress=lambda app: lambda: app,
    )
    context = SimpleNamespace(_get_global_client=lambda **_: client)
    ray = SimpleNamespace(
        init=lambda *_, **__: None, shutdown=lambda: None, cluster_resources=lambda: {}, serve=serve
    )
    exceptions = SimpleNamespace(RayError=RayError)
    names = {"ray": ray, "ray.serve": serve, "ray.serve.context": context, "ray.exceptions": exceptions}
    for name, module in names.items():
        monkeypatch.setitem(sys.modules, name, module)
    config = ServingConfig(host=wanted[0], port=wanted[1])
    if not taken:
        with pytest.raises(InputError, match=r"it keeps to host=\S+ port=7861\."):
            serve_on_ray(config, None, Scale(1, 1, 8.0, None), address="auto")
        assert not started
        return
    with pytest.raises(LineardiTError, match="the replicas did not start"):
        serve_on_ray(config, None, Scale(1, 1, 8.0, None), address="auto")
    (asked,) = started
    assert asked["port"] > 0 and (running is None or asked == {"host": running[0], "port": running[1]})


def test_without_ray_the_verb_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lineardit.cli.serve.find_spec", lambda name: None if name == "ray" else True)
    assert main(["serve", "--ray"]) == 2
    assert capsys.readouterr().err == (
        "error: lineardit serve --ray needs the package ray: pip install 'lineardit[ray]'\n"
    )
    monkeypatch.setattr("lineardit.cli.serve.find_spec", lambda name: True)
    assert main(["serve", "--ray", "--replicas", "many"]) == 2
    assert "--replicas many is neither a number nor LEAST:MOST" in capsys.readouterr().err
