"""Requests made by hypothesis from the server's own OpenAPI schema: whatever they say, it stays polite.

    python benchmarks/serve_fuzz.py --requests 20000

No status of 500, no error over 2 kB, nothing of a request or of a path in an error, and the server still
draws at the end. `--record` keeps the table in docs/reliability.md.
"""

import argparse
import json
import random
import sys
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as some
from record import Rows, report
from serve_client import GENERATE, Server, running, serving_options

WORD = "SECRETWORD"
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMB"
    "AQDJ/pLvAAAAAElFTkSuQmCC"
)
_ODD = some.sampled_from(
    [None, True, -1, 0, 1e308, "", WORD, "\0", "\ud800", [], {}, ["a"], {"a": 1}, "x" * 5000]
)
_TEXTS = some.sampled_from(
    ["a red apple", "🐈", "24x24", "auto", "euler", "Euler a", PICTURE, WORD, "é" * 50]
)
GOOD = {
    "prompt": some.sampled_from(["a red apple", "🐈", "é" * 50]),
    "image_url": some.just(PICTURE),
    "image": some.just(PICTURE),
    "init_images": some.just([PICTURE]),
    "num_inference_steps": some.sampled_from([1, 2]),
    "steps": some.sampled_from([1, 2]),
}
"""Fields without which nothing else of a request would be looked at."""


def values(schema: dict[str, Any], schemas: dict[str, Any]) -> some.SearchStrategy[Any]:
    """Values that fit a part of the schema, one in four of another kind."""
    return some.integers(0, 3).flatmap(lambda chance: _ODD if chance == 0 else _fitting(schema, schemas))


def _fitting(schema: dict[str, Any], schemas: dict[str, Any]) -> some.SearchStrategy[Any]:
    if "$ref" in schema:
        return bodies(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        return some.one_of(*(_fitting(each, schemas) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return some.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "integer":
            return some.one_of(some.integers(1, 3), some.integers(), some.sampled_from([2**31, 2**63]))
        case "number":
            return some.one_of(some.floats(), some.sampled_from([0.0, 0.5, 1.0, 4.5]))
        case "boolean":
            return some.booleans()
        case "array":
            return some.lists(values(schema.get("items", {}), schemas), max_size=2)
        case "object":
            return some.dictionaries(some.text(max_size=5), _ODD, max_size=2)
        case "string":
            return some.one_of(_TEXTS, some.text(max_size=30))
        case _:
            return some.none()


def bodies(schema: dict[str, Any], schemas: dict[str, Any]) -> some.SearchStrategy[dict[str, Any]]:
    """Objects with what must be there and up to three other fields; now and then one that is unknown."""
    parts = schema["properties"]
    fields = {name: GOOD.get(name, some.nothing()) | values(part, schemas) for name, part in parts.items()}
    needed = {name: fields[name] for name in schema.get("required", [])} | {
        name: GOOD[name] for name in GOOD if name in parts
    }
    others = sorted(fields.keys() - needed.keys()) or sorted(fields)
    chosen = some.lists(some.sampled_from(others), max_size=3, unique=True)
    known = chosen.flatmap(
        lambda names: some.fixed_dictionaries(needed | {name: fields[name] for name in names})
    )
    unknown = some.builds(lambda body: body | {WORD: WORD}, known)
    broken = some.builds(lambda body, more: body | more, known, some.fixed_dictionaries({}, optional=fields))
    return some.one_of(known, known, known, known, broken, unknown)


def _kind(body: dict[str, Any]) -> str:
    return str(body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2])


def fuzz(options: argparse.Namespace) -> tuple[Rows, bool]:
    """Send them, and count what comes back."""
    counts: Counter[str] = Counter()
    with running(options, "--max-steps", "3", "--max-pictures", "2", "--max-pixels", "16384") as server:
        described = json.loads(server.ask("GET", "/openapi.json")[1])
        schemas = described["components"]["schemas"]
        routes = {
            path: schemas[_kind(route["post"]["requestBody"])]
            for path, route in described["paths"].items()
            if "requestBody" in route.get("post", {})
        }
        sent = some.sampled_from(sorted(routes)).flatmap(
            lambda path: some.tuples(some.just(path), bodies(routes[path], schemas))
        )

        @seeded(options.seed)
        @settings(max_examples=options.requests, deadline=None, database=None, print_blob=False,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(sent)
        def send(asked: tuple[str, dict[str, Any]]) -> None:
            one(server, *asked, counts)

        send()
        alive = server.ask("GET", "/readyz")[0] == 200
        alive = (
            alive and server.ask("POST", GENERATE, {"prompt": "a cat", "num_inference_steps": 1})[0] == 200
        )
    rows = [
        [f"status {kind}" if kind.isdecimal() else kind, str(count)] for kind, count in sorted(counts.items())
    ]
    rows += [["requests", str(sum(count for kind, count in counts.items() if kind.isdecimal()))]]
    return rows, alive and "500" not in counts and "too much said" not in counts


def one(server: Server, path: str, body: dict[str, Any], counts: Counter[str]) -> None:
    """Send a request and count its answer."""
    status, answer, _ = server.ask("POST", path, body)
    counts[str(status)] += 1
    if status != 200 and (len(answer) > 2000 or WORD.encode() in answer or b"site-packages" in answer):
        counts["too much said"] += 1
    if status >= 500 and status != 503:
        sys.stderr.write(f"{status} {path} {json.dumps(body)[:1000]}\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    serving_options(parser)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    rows, kept = fuzz(options)
    return report("fuzz", rows, kept, record=options.record)


if __name__ == "__main__":
    sys.exit(main())
