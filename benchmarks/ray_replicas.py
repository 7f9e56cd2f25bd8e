"""`lineardit serve --ray` on a cluster that is started here: two replicas, then a second one on demand.

    python benchmarks/ray_replicas.py --requests 40

With `--replicas 2` requests of eight clients are answered, each by its own picture, and both replicas draw.
With `--replicas 1:2` the second is started while requests wait. Needs the extra [ray]; `--record` keeps it.
"""

import argparse
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from record import Rows, report
from serve_client import GENERATE, Server, belongs, everybody, request, serving_options

LONGEST = 300
"""Seconds that the second replica may take to be started."""


def workers() -> set[int]:
    """Processes that draw, and were started by those that this one started."""
    parents, drawing = {}, set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[1])
            if b"lineardit.serving.worker" in command:
                drawing.add(int(entry.name))

    def is_ours(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return {process for process in drawing if is_ours(process)}


def seconds_of(process: int) -> float:
    """Processor time that it has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(options: argparse.Namespace, replicas: str) -> Server:
    """The server; it says its address once the replicas are there."""
    code = "import sys; from lineardit.cli.app import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", "--ray", "--replicas", replicas, "--port", "0"]
    command += ["--device", options.device, "--requests-per-replica", "2", "--dtype", options.dtype]
    process = subprocess.Popen(
        [*command, *(["--model", options.model] if options.model else [])], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.match(r"http://[^:]*:(\d+)  on Ray", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return Server.at(process, int(found[1]))
        sys.stderr.write(line)
    sys.exit("the replicas did not start")


def ask_all(server: Server, steps: int, goes_on: Callable[[int], bool]) -> Counter[str]:
    """Eight clients at a time ask for pictures, by their number, for as long as it goes on."""
    counts: Counter[str] = Counter()
    numbers, lock = itertools.count(), threading.Lock()

    def client(_: int) -> None:
        while True:
            with lock:
                number = next(numbers)
            if not goes_on(number):
                return
            asked = request(server.takes, random.Random(number), steps)
            status, body, _headers = server.ask("POST", GENERATE, asked)
            kind = str(status) if status != 200 or belongs(body, asked) else "swapped"
            with lock:
                counts[kind] += 1

    everybody(8, client)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    serving_options(parser)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    rows: Rows = []
    server = start(options, "2")
    before = {process: seconds_of(process) for process in workers()}
    counts = ask_all(server, options.steps, lambda number: number < options.requests)
    busy = sum(seconds_of(process) > used for process, used in before.items())
    code = server.stop()
    rows += [["two replicas: processes that drew", str(busy)], ["two replicas: exit status", str(code)]]
    rows += [[f"two replicas: answers {kind}", str(count)] for kind, count in sorted(counts.items())]
    kept = busy == 2 == len(before) and set(counts) == {"200"} and code == 0 and not workers()

    server = start(options, "1:2")
    first, most, begun = len(workers()), 0, time.monotonic()
    counts.clear()
    found = threading.Event()

    def goes_on(_: int) -> bool:
        return not found.is_set() and time.monotonic() < begun + LONGEST

    asking = threading.Thread(target=lambda: counts.update(ask_all(server, options.steps, goes_on)))
    asking.start()
    while asking.is_alive() and most < 2:
        most = max(most, len(workers()))
        time.sleep(0.2)
    waited = time.monotonic() - begun
    found.set()
    asking.join()
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(180)
    rows += [["one to two: replicas at first", str(first)], ["one to two: replicas under load", str(most)]]
    rows += [["one to two: seconds until the second was started", f"{waited:.0f}"]]
    rows += [[f"one to two: answers {kind}", str(count)] for kind, count in sorted(counts.items())]
    kept = kept and (first, most) == (1, 2) and set(counts) <= {"200", "429"} and code == 0
    return report("ray", rows, kept, record=options.record)


if __name__ == "__main__":
    sys.exit(main())
