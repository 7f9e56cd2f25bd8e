"""`lineardit serve` as a process, and clients that know what they asked it for."""

import argparse
import base64
import http.client
import io
import json
import random
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

GENERATE = "/v1/images/generations"
WORDS = ("apple", "cat", "dog", "house", "tree", "boat", "star", "fish")


class Server:
    """`lineardit serve` as a process."""

    def __init__(self, options: argparse.Namespace, *more: str, command: list[str] | None = None) -> None:
        """`command` starts another server, which may warn of things before it says its address."""
        start = "import sys; from lineardit.cli.app import main; sys.exit(main())"
        ours = [sys.executable, "-c", start, "serve", "--port", "0", "--device", options.device]
        ours += ["--dtype", options.dtype, *(("--model", options.model) if options.model else ()), *more]
        self.process = subprocess.Popen(command or ours, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        while command and line and not line.startswith("http://"):
            line = self.process.stderr.readline()
        if not line.startswith("http://"):
            sys.exit(line + self.process.stderr.read() or "the server did not start")
        self.port = int(line.split()[0].rpartition(":")[2])
        threading.Thread(target=self._drain, daemon=True).start()
        self.takes = {} if command else json.loads(self.ask("GET", "/v1/models")[1])["data"][0]["takes"]

    @classmethod
    def at(cls, process: "subprocess.Popen[str]", port: int) -> "Server":
        """One that runs already."""
        server = cls.__new__(cls)
        server.process, server.port = process, port
        server.takes = json.loads(server.ask("GET", "/v1/models")[1])["data"][0]["takes"]
        return server

    def connect(self, seconds: float = 600) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes, dict[str, str]]:
        connection = self.connect()
        content = None if body is None else json.dumps(body)
        connection.request(
            method, path, content, {"Content-Type": "application/json"} if body is not None else {}
        )
        response = connection.getresponse()
        found = response.status, response.read(), {k.lower(): v for k, v in response.getheaders()}
        connection.close()
        return found

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def processes(self) -> list[int]:
        """The server and its workers."""
        own = self.process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *map(int, children)]

    def megabytes(self) -> float:
        """Resident memory of all its processes."""
        total = 0
        for number in self.processes():
            with suppress(OSError):
                total += int(Path(f"/proc/{number}/statm").read_text().split()[1])
        return total * 4096 / 1e6

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            sys.stderr.write(line)


@contextmanager
def running(options: argparse.Namespace, *more: str) -> Iterator[Server]:
    server = Server(options, *more)
    try:
        yield server
    finally:
        server.stop()


def request(takes: dict[str, Any], chance: random.Random, steps: int) -> dict[str, Any]:
    """Something to draw, by what a model takes."""
    unit, size = takes["unit"], takes["size"]
    width, height = (max(unit, size - unit * chance.randrange(3)) for _ in range(2))
    words = " ".join(chance.choices(WORDS, k=4))
    return {
        "prompt": words,
        "seed": chance.randrange(2**32),
        "size": f"{width}x{height}",
        "num_inference_steps": steps,
    }


def belongs(body: bytes, wanted: dict[str, Any]) -> bool:
    """Whether an answer holds the picture that was asked for."""
    with Image.open(io.BytesIO(base64.b64decode(json.loads(body)["data"][0]["b64_json"]))) as picture:
        picture.load()
        told = json.loads(picture.info["lineardit"])
        size = f"{picture.width}x{picture.height}"
    return (told["prompt"], told["seed"], size) == (wanted["prompt"], wanted["seed"], wanted["size"])


def everybody(count: int, work: Callable[[int], None]) -> None:
    """Run a client in each of so many threads."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def percentiles(seconds: list[float]) -> list[list[str]]:
    """The middle and the slow end."""
    if len(seconds) < 2:
        return [["pictures", str(len(seconds))]]
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return [["seconds, p50", f"{cuts[49]:.2f}"], ["seconds, p99", f"{cuts[98]:.2f}"]]


def slope_per_minute(points: list[tuple[float, float]]) -> float:
    """Of a straight line through (seconds, value)."""
    return 60 * statistics.linear_regression(*zip(*points, strict=True)).slope


def serving_options(parser: argparse.ArgumentParser) -> None:
    """Those that say what is served."""
    parser.add_argument("--model", help="folder of a model; the bundled one unless given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--record", action="store_true", help="keep the result for docs/reliability.md")
