"""What a server does under load, and whether it ever loses or swaps a picture.

    python benchmarks/serve_load.py load --clients 64 --minutes 10       mixed sizes, cancels, slow readers
    python benchmarks/serve_load.py stop --rounds 100                    SIGTERM under load
    python benchmarks/serve_load.py kill --rounds 20                     kill -9 of the worker under load

Each starts `lineardit serve` on loopback (`--model FOLDER`, `--device`, `--dtype`), prints a table under the
hardware stamp (`--record` keeps it in docs/reliability.md) and ends with status 1 where a promise was broken.
A picture belongs to whoever asked if prompt, seed and size in its PNG are those of the request.
"""

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from record import Rows, report
from serve_client import (
    GENERATE,
    Server,
    belongs,
    everybody,
    percentiles,
    request,
    running,
    serving_options,
    slope_per_minute,
)


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
                wanted, fate = request(server.takes, chance, options.steps), chance.random()
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
        wanted = [request(server.takes, chance, options.steps) for _ in range(8)]
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
            wanted = [request(server.takes, chance, options.steps) for _ in range(4)]

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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["load", "stop", "kill"])
    serving_options(parser)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    rows, kept = {"load": load, "stop": stop, "kill": kill}[options.what](options)
    return report(options.what, rows, kept, record=options.record)


if __name__ == "__main__":
    sys.exit(main())
