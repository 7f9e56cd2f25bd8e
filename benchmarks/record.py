"""Keeps what the reliability and throughput scripts measured, and writes the tables of docs/reliability.md.

python benchmarks/record.py        write the page again from benchmarks/results/reliability-*.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "reliability.md"
Rows = list[list[str]]
PARTS = {
    "load": (
        "64 clients, mixed sizes, 10 % leave, 5 % read slowly",
        "no reply lost or swapped; 429 or 503 only when full; memory grows less than 1 MB a minute",
    ),
    "stop": (
        "SIGTERM with eight requests in hand",
        "each ends in its picture or a 503; exit status 0, no worker left, the port free",
    ),
    "kill": ("kill -9 of the worker with four requests in hand", "every request gets its picture"),
    "fuzz": (
        "requests made by hypothesis from the OpenAPI schema",
        "no status 500, no error over 2 kB, no echo of the input",
    ),
    "files": (
        "damaged weights, configurations, pictures, dataset rows and tars",
        "read, or refused by an error of ours within 2 s",
    ),
    "throughput": (
        "pictures a second and latency beside what one would write around diffusers",
        "every request is answered, by the same weights",
    ),
    "ray": ("two replicas on a local Ray cluster", "every request gets its own picture, both replicas draw"),
}
"""What each part does, and what it must show."""


COMMANDS = {
    "load": "serve_load.py load --clients 64 --minutes 10",
    "stop": "serve_load.py stop --rounds 100",
    "kill": "serve_load.py kill --rounds 20",
    "fuzz": "serve_fuzz.py --requests 20000",
    "files": "fuzz_files.py --mutations 2000",
    "throughput": "serve_throughput.py --seconds 60",
    "ray": "ray_replicas.py --requests 40",
}
"""What measures each in full."""


def report(part: str, rows: Rows, kept: bool, header: list[str] | None = None, *, record: bool) -> int:
    """Print the table of one part; `record` also keeps it and writes the page. The exit status."""
    result: dict[str, Any] = {
        "command": " ".join(["python", *(word for word in sys.argv if word != "--record")]),
        "stamp": stamp_line(hardware_stamp()),
        "header": header or ["what", "measured"],
        "rows": rows,
        "kept": kept,
    }
    sys.stdout.write(section(part, result))
    if record:
        file = RESULTS / f"reliability-{part}.json"
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
        write_page()
    return 0 if kept else 1


def section(part: str, result: dict[str, Any]) -> str:
    """One part of the page."""
    what, promise = PARTS[part]
    return (
        f"## {what[0].upper()}{what[1:]}\n\n{promise[0].upper()}{promise[1:]}: "
        f"{'kept' if result['kept'] else '**broken**'}.\n\n`{result['command']}`; {result['stamp']}.\n\n"
        f"{markdown_table(result['header'], result['rows'])}\n\n"
    )


def write_page() -> None:
    """docs/reliability.md from what there is in benchmarks/results."""
    there = [part for part in PARTS if (RESULTS / f"reliability-{part}.json").exists()]
    results = {part: json.loads((RESULTS / f"reliability-{part}.json").read_text("utf-8")) for part in there}
    rows = []
    for part, (what, promise) in PARTS.items():
        kept = {True: "kept", False: "**broken**", None: "not measured here yet"}
        outcome = kept[results[part]["kept"] if part in results else None]
        rows.append([what, promise, outcome, f"`python benchmarks/{COMMANDS[part]} --record`"])
    text = (
        "# Reliability of the server, measured\n\nEvery table is written by the command above it; "
        "`--record` keeps it. 30 payloads that would run as a script, in prompts and in the settings "
        "of pictures, are tried in a headless Chromium by `pytest tests/serving/test_page.py`.\n\n"
    )
    text += markdown_table(["what is done", "what must hold", "outcome", "command"], rows) + "\n\n"
    PAGE.write_text((text + "".join(section(part, results[part]) for part in there)).rstrip() + "\n", "utf-8")


if __name__ == "__main__":
    write_page()
