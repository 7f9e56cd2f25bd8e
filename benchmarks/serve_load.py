"""What a server does under load, and whether it ever loses or swaps a picture.

    python benchmarks/serve_load.py load --clients 64 --minutes 10       mixed sizes, cancels, slow readers
    python benchmarks/serve_load.py stop --rounds 100                    SIGTERM under load
    python benchmarks/serve_load.py kill --rounds 20                     kill -9 of the worker under load
    python benchmarks/serve_load.py fuzz --requests 20000                bodies from the OpenAPI schema
    python benchmarks/serve_load.py rate --clients 1,4,16 --seconds 30   pictures per second, p50, p99

Each starts `lineardit serve` on loopback (`--model FOLDER`, `--device`, `--dtype`), prints a table in
Markdown under the hardware stamp (`-o FILE` writes it too) and ends with status 1 where a promise was broken.
A picture belongs to whoever asked if prompt, seed and size in its PNG are those of the request.
"""

import argparse
import base64
import http.client
import io
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table

GENERATE = "/v1/images/generations"
WORDS = ("apple", "cat", "dog", "house", "tree", "boat", "star", "fish")
Rows = list[list[str]]


class Server:
    """`lineardit serve` as a process."""

    def __init__(self, options: argparse.Namespace, *more: str) -> None:
        start = "import sys; from lineardit.cli.app import main; sys.exit(main())"
        command = [sys.executable, "-c", start, "serve", "--port", "0", "--device", options.device]
        command += ["--dtype", options.dtype, *(("--model", options.model) if options.model else ()), *more]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        if not line.startswith("http://"):
            sys.exit(line or "the server did not start")
        self.port = int(line.split()[0].rpartition(":")[2])
        threading.Thread(target=self._drain, daemon=True).start()
        self.takes = json.loads(self.ask("GET", "/v1/models")[1])["data"][0]["takes"]

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


def request(server: Server, chance: random.Random, steps: int) -> dict[str, Any]:
    """Something to draw."""
    unit, size = server.takes["unit"], server.takes["size"]
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


def load(options: argparse.Namespace) -> tuple[Rows, bool]:
    """64 clients: one in ten leaves early, one in twenty reads slowly."""
    counts: Counter[str] = Counter()
    seconds: list[float] = []
    memory: list[tuple[float, float]] = []
    lock, end = threading.Lock(), time.monotonic() + 60 * options.minutes
    with running(options) as server:

        def client(number: int) -> None:
            chance = random.Random(number)
            while time.monotonic() < end:
                wanted, fate = request(server, chance, options.steps), chance.random()
                kind, begun = "broken", time.monotonic()
                try:
                    kind = one_request(server, wanted, fate, chance)
                except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                    kind = f"lost: {type(error).__name__}"
                with lock:
                    counts[kind] += 1
                    if kind == "200":
                        seconds.append(time.monotonic() - begun)
                if kind in ("429", "503"):
                    time.sleep(chance.uniform(0.2, 2))

        def watch() -> None:
            while time.monotonic() < end:
                memory.append((time.monotonic(), server.megabytes()))
                time.sleep(1)

        watcher = threading.Thread(target=watch)
        watcher.start()
        everybody(options.clients, client)
        watcher.join()
        left = server.metric("lineardit_pictures_drawing") + server.metric("lineardit_pictures_waiting")
        code = server.stop()
    slope = slope_per_minute(memory[len(memory) // 5 :])
    bad = [kind for kind in counts if kind not in ("200", "429", "503", "left")]
    rows = [[f"answers: {kind}", str(count)] for kind, count in sorted(counts.items())]
    rows += percentiles(seconds)
    rows += [["memory, MB at the end", f"{memory[-1][1]:.0f}"], ["memory, MB a minute", f"{slope:.2f}"]]
    rows += [["pictures left in the house", f"{left:.0f}"], ["exit status", str(code)]]
    return rows, not bad and slope < 1 and left == 0 and code == 0


def one_request(server: Server, wanted: dict[str, Any], fate: float, chance: random.Random) -> str:
    """Ask, and leave early, read slowly, or read at once; what came of it."""
    connection = server.connect()
    connection.request("POST", GENERATE, json.dumps(wanted), {"Content-Type": "application/json"})
    try:
        if fate < 0.10:
            time.sleep(chance.uniform(0, 1))
            return "left"
        response = connection.getresponse()
        if fate < 0.15:
            body = b""
            while part := response.read(4096):
                body += part
                time.sleep(0.05)
        else:
            body = response.read()
        if response.status != 200:
            return (
                str(response.status)
                if response.getheader("Retry-After")
                else f"{response.status} without hint"
            )
        return "200" if belongs(body, wanted) else "swapped"
    finally:
        connection.close()


def stop(options: argparse.Namespace) -> tuple[Rows, bool]:
    """SIGTERM with requests in hand: each ends in a picture or a clean refusal, and the port is free."""
    counts: Counter[str] = Counter()
    for round_number in range(options.rounds):
        server, chance = Server(options), random.Random(round_number)
        wanted = [request(server, chance, options.steps) for _ in range(8)]
        sent = threading.Barrier(9)

        def client(
            number: int, server: Server = server, wanted: list[dict[str, Any]] = wanted,
            sent: threading.Barrier = sent,
        ) -> None:  # fmt: skip
            kind = "lost"
            try:
                connection = server.connect()
                connection.request(
                    "POST", GENERATE, json.dumps(wanted[number]), {"Content-Type": "application/json"}
                )
                sent.wait()
                response = connection.getresponse()
                body = response.read()
                kind = (
                    str(response.status)
                    if response.status != 200 or belongs(body, wanted[number])
                    else "swapped"
                )
            except (OSError, http.client.HTTPException) as error:
                kind = f"lost: {type(error).__name__}"
            counts[kind] += 1

        clients = threading.Thread(target=everybody, args=(8, client))
        clients.start()
        sent.wait()
        time.sleep(chance.uniform(0.1, 0.6))
        children = server.processes()[1:]
        counts[f"exit status {server.stop()}"] += 1
        clients.join()
        if any(Path(f"/proc/{number}").exists() for number in children):
            counts["worker left behind"] += 1
        with suppress(OSError), socket.create_server(("127.0.0.1", server.port)):
            counts["port free"] += 1
    good = {"200", "503", "exit status 0", "port free"}
    rows = [[kind, str(count)] for kind, count in sorted(counts.items())]
    return rows, set(counts) <= good and counts["port free"] == options.rounds


def kill(options: argparse.Namespace) -> tuple[Rows, bool]:
    """kill -9 of the worker: every request still gets its picture, and the next worker is there soon."""
    counts: Counter[str] = Counter()
    waits = []
    with running(options) as server:
        for round_number in range(options.rounds):
            chance = random.Random(round_number)
            wanted = [request(server, chance, options.steps) for _ in range(4)]

            def client(number: int, wanted: list[dict[str, Any]] = wanted) -> None:
                status, body, _ = server.ask("POST", GENERATE, wanted[number])
                counts[str(status) if status != 200 or belongs(body, wanted[number]) else "swapped"] += 1

            clients = threading.Thread(target=everybody, args=(4, client))
            clients.start()
            while not server.metric("lineardit_pictures_drawing") and clients.is_alive():
                time.sleep(0.005)
            before = server.processes()[1:]
            subprocess.run(["kill", "-9", str(before[0])], check=True)
            begun = time.monotonic()
            while server.processes()[1:] in (before, []):
                time.sleep(0.02)
            clients.join()
            waits.append(time.monotonic() - begun)
        restarts = server.metric("lineardit_worker_restarts_total")
    rows = [[f"answers: {kind}", str(count)] for kind, count in sorted(counts.items())]
    rows += [["restarts", f"{restarts:.0f}"], ["kill to last answer, s, worst", f"{max(waits):.1f}"]]
    return rows, set(counts) == {"200"} and restarts == options.rounds


def fuzz(options: argparse.Namespace) -> tuple[Rows, bool]:
    """Bodies made from the server's own schema: no status 500, no long error, no echo."""
    counts: Counter[str] = Counter()
    chance = random.Random(options.seed)
    with running(options, "--max-steps", "4", "--max-pictures", "2") as server:
        schema = json.loads(server.ask("GET", "/openapi.json")[1])
        routes = {
            path: schema["components"]["schemas"][
                route["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[
                    2
                ]
            ]["properties"]
            for path, route in schema["paths"].items()
            if "requestBody" in route.get("post", {})
        }
        for _ in range(options.requests):
            path = chance.choice(sorted(routes))
            fields = routes[path]
            body = {name: anything(chance, fields[name]) for name in fields if chance.random() < 0.4}
            if chance.random() < 0.1:
                body["SECRETWORD"] = "SECRETWORD"
            status, answer, _ = server.ask("POST", path, body)
            counts[str(status)] += 1
            if status != 200 and (len(answer) > 2000 or b"SECRETWORD" in answer):
                counts["too much said"] += 1
        alive = server.ask("GET", "/readyz")[0] == 200
    rows = [
        [f"status {kind}" if kind.isdecimal() else kind, str(count)] for kind, count in sorted(counts.items())
    ]
    return rows, alive and "500" not in counts and "too much said" not in counts


def anything(chance: random.Random, field: dict[str, Any]) -> Any:
    """A value that mostly fits a field of the schema, or one that does not."""
    if chance.random() < 0.25:
        return chance.choice(
            [None, True, -1, 0, 1e308, "", "SECRETWORD", "\0", [], {}, ["a"], {"a": 1}, "x" * 5000]
        )
    kinds = field.get("anyOf", [field])
    kind = chance.choice(kinds)
    if "enum" in kind or "const" in kind:
        return chance.choice(kind.get("enum", [kind.get("const")]))
    match kind.get("type"):
        case "integer":
            return chance.choice([1, 2, 3, 8, 16, 2**31, 2**63])
        case "number":
            return chance.choice([0.0, 1.0, 4.5, 100.0, 101.0])
        case "boolean":
            return chance.random() < 0.5
        case "string":
            return chance.choice(["a red apple", "🐈", "24x24", "auto", "euler", "Euler a", "é" * 50])
        case _:
            return None


def rate(options: argparse.Namespace) -> tuple[Rows, bool]:
    """Pictures per second and latencies, by the number of clients that ask one after the other."""
    rows, good = [], True
    with running(options) as server:
        for clients in (int(word) for word in options.clients_list.split(",")):
            seconds: list[float] = []
            begun = time.monotonic()
            end = begun + options.seconds

            def client(number: int, end: float = end, seconds: list[float] = seconds) -> None:
                chance = random.Random(number)
                while time.monotonic() < end:
                    wanted = request(server, chance, options.steps)
                    wanted["size"] = "auto"
                    asked = time.monotonic()
                    if server.ask("POST", GENERATE, wanted)[0] == 200:
                        seconds.append(time.monotonic() - asked)

            everybody(clients, client)
            speed = len(seconds) / (time.monotonic() - begun)
            good = good and bool(seconds)
            rows.append([f"{clients} clients: pictures a second", f"{speed:.2f}"])
            rows += [[f"{clients} clients: {name}", value] for name, value in percentiles(seconds)]
    return rows, good


def percentiles(seconds: list[float]) -> Rows:
    """The middle and the slow end."""
    if len(seconds) < 2:
        return [["pictures", str(len(seconds))]]
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return [["seconds, p50", f"{cuts[49]:.2f}"], ["seconds, p99", f"{cuts[98]:.2f}"]]


def slope_per_minute(points: list[tuple[float, float]]) -> float:
    """Of a straight line through (seconds, value)."""
    return 60 * statistics.linear_regression(*zip(*points, strict=True)).slope


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["load", "stop", "kill", "fuzz", "rate"])
    parser.add_argument("--model", help="folder of a model; the bundled one unless given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--clients", dest="clients_list", default=None, help="64 for load; 1,4,16 for rate")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    options.clients_list = options.clients_list or ("1,4,16" if options.what == "rate" else "64")
    options.clients = int(options.clients_list.split(",")[0])
    rows, kept = {"load": load, "stop": stop, "kill": kill, "fuzz": fuzz, "rate": rate}[options.what](options)
    how = " ".join(sys.argv[1:])
    page = (
        f"# Serving: {options.what}\n\n"
        f"`python benchmarks/serve_load.py {how}`; {stamp_line(hardware_stamp())}.\n\n"
        f"{markdown_table(['what', 'measured'], rows)}\n\nPromises kept: {'yes' if kept else 'no'}.\n"
    )
    sys.stdout.write(page)
    if options.output is not None:
        options.output.write_text(page, "utf-8")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
