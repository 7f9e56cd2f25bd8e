"""Draw how the loss of one or more runs fell, over the samples they saw.

    python benchmarks/learning_curves.py velocity=runs/emoji-transformer:velocity \
        "object at each token=runs/emoji-transformer:layout" -o docs/pictures/learning.svg
"""

import argparse
import json
from pathlib import Path

from lineardit.bench.plot import line_plot


def losses(run: str) -> list[tuple[float, float]]:
    """(step, loss) of a run's metrics; where a run was resumed, the last word on a step counts."""
    folder, _, name = run.partition(":")
    lines = (Path(folder) / "metrics.jsonl").read_text("utf-8").splitlines()
    entries = [entry for entry in map(json.loads, lines) if (name or "loss") in entry]
    return sorted({entry["step"]: entry[name or "loss"] for entry in entries}.items())


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER[:LOSS]", help="folders of runs")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the SVG to write")
    given = parser.parse_args()
    series = {name: losses(folder) for name, _, folder in (run.partition("=") for run in given.runs)}
    text = line_plot(series, title="Loss by step", x_label="step", y_label="loss", log_y=True)
    given.output.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
