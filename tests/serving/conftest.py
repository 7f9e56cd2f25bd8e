"""Servers on loopback, each a process of its own, and the plainest of clients."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PRETENDED = str(Path(__file__).with_name("pretended_worker.py"))
_START = """
import json, sys
from lineardit.config.serving import ServingConfig
from lineardit.serving.server import serve
options, key, worker = json.loads(sys.argv[1])
serve(ServingConfig(port=0, devices=("cpu",), **options), key, command=[sys.executable, worker],
      announce=lambda url, engine: print(url, engine.devices[0].process_id, flush=True))
"""


class Answer(NamedTuple):
    """What a server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of its error."""
        return str(self.json["error"]["code"])


class Server:
    """A server process."""

    def __init__(self, process: "subprocess.Popen[str]", port: int, worker: int) -> None:
        self.process, self.port, self.worker = process, port, worker
        self.url = f"http://127.0.0.1:{port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def send(self, path: str, body: Any, headers: dict[str, str] | None = None) -> http.client.HTTPConnection:
        """Send a request, and leave its answer to be read."""
        connection = self.connect()
        content = body if isinstance(body, bytes) else json.dumps(body)
        connection.request("POST", path, content, {"Content-Type": "application/json", **(headers or {})})
        return connection

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        return read(self.send(path, body, headers))

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        connection = self.connect()
        connection.request(method, path, headers=headers or {})
        return read(connection)

    def draw(self, prompt: str = "a cat", **fields: Any) -> Answer:
        return self.post("/v1/images/generations", {"prompt": prompt, **fields})

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)


def read(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    connection.close()
    return answer


@contextmanager
def started(command: list[str], stream: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """A server that says its address on `stream`; it must end well when it is told to stop."""
    process = subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE if stream == "stdout" else None,
        stderr=subprocess.PIPE if stream == "stderr" else None,
        env={**os.environ, **(environment or {})},
    )
    pipe = process.stdout or process.stderr
    assert pipe is not None
    words = pipe.readline().split()
    assert words and words[0].startswith("http://127.0.0.1:"), words
    worker = int(words[1]) if stream == "stdout" else 0
    try:
        yield Server(process, int(words[0].rpartition(":")[2]), worker)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        pipe.close()
    assert code == 0


@contextmanager
def pretending(key: str | None = None, **options: Any) -> Iterator[Server]:
    """A server whose worker is `pretended_worker.py`."""
    with started([sys.executable, "-c", _START, json.dumps([options, key, PRETENDED])], "stdout") as server:
        yield server


@pytest.fixture(scope="session")
def start_pretended() -> Callable[..., AbstractContextManager[Server]]:
    """For tests that need a server of their own."""
    return pretending


@pytest.fixture(scope="session")
def pretended() -> Iterator[Server]:
    """One for all tests that leave it as they found it."""
    limits = {
        "waiting": 4,
        "pixels": 4096,
        "steps": 1000,
        "work": 4096 * 1000,
        "pictures": 4,
        "body_seconds": 1.0,
    }
    with pretending(batch=1, models=("emoji", "places/second"), limits=limits) as server:
        yield server


@pytest.fixture(scope="session")
def served(tiny_model: Path) -> Iterator[Server]:
    """`lineardit serve`, with a model that draws."""
    command = [
        sys.executable,
        "-c",
        "import sys; from lineardit.cli.app import main; sys.exit(main())",
        "serve",
    ]
    with started(
        [*command, "--model", str(tiny_model), "--port", "0", "--device", "cpu"], "stderr"
    ) as server:
        yield server
