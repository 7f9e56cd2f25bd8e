"""Draws with a compiled pipeline and prints what came of it: `python compiled_pictures.py MODEL FOLDER`.

In a process of its own: torch.compile cannot look into functions whose shapes are checked, as those of
the tests' process are. Graphs run as they were traced, which takes less time than compiling them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from lineardit.cli.app import main
from lineardit.errors import NotFiniteError
from lineardit.pipeline import Pipeline, compiled

CALL: dict[str, Any] = {"height": 16, "width": 24, "num_inference_steps": 3, "output_type": "pt"}
LARGER = CALL | {"width": 32, "guidance_interval": (0.3, 0.8)}
CACHED = CALL | {"step_cache": 0.2}

graphs: list[Any] = []


def traced(graph: Any, _: Any) -> Any:
    """A backend that computes what was traced."""
    graphs.append(graph)
    return graph.forward


def facts(model: str, folder: Path) -> dict[str, Any]:
    """How far pictures are from those of the pipeline as it is, and how many graphs there were by then."""
    pipe = Pipeline.from_pretrained(model, device="cpu")
    calls = {"cached": CACHED, "first": CALL, "again": CALL, "larger": LARGER}
    wanted = {name: pipe("a cat", **call).images for name, call in calls.items()}
    pipe.compile()
    found: dict[str, Any] = {"before": len(graphs)}
    for name, call in calls.items():
        apart = float((pipe("a cat", **call).images - wanted[name]).abs().max())
        found[name] = {"apart": apart, "graphs": len(graphs)}
    half = Pipeline.from_pretrained(model, device="cpu", dtype="bf16")
    exact = half("a cat", **CALL).images
    half.compile()
    apart = float((half("a cat", **CALL).images - exact).abs().max())
    found["half"] = {"apart": apart, "graphs": len(graphs)}
    with torch.no_grad():
        pipe.transformer.get_parameter("blocks.0.feed_forward.contract.weight").fill_(1e38)
    try:
        with pipe.watched():
            pipe("a cat", **CALL)
    except NotFiniteError as error:
        found["named"] = str(error)
    words = ["generate", "a cat", "--model", model, "--device", "cpu", "--kernels", "torch"]
    before = len(graphs)
    codes = [main([*words, *more, "-o", str(folder / f"{len(more)}.png")]) for more in ([], ["--compile"])]
    same = (folder / "0.png").read_bytes() == (folder / "1.png").read_bytes()
    return found | {"command": [codes, len(graphs) - before, same]}


if __name__ == "__main__":
    options = compiled._options(torch.device("cpu")) | {"backend": traced, "fullgraph": True}
    compiled._options = lambda _: {name: each for name, each in options.items() if name != "mode"}
    sys.stdout.write(json.dumps(facts(sys.argv[1], Path(sys.argv[2]))))
