"""How time and memory of a picture grow with its pixels: softmax DiT, diffusers' SANA and ours.

    python benchmarks/growth.py                  512 to 4096 pixels a side
    python benchmarks/growth.py --pixels 512,1024
    python benchmarks/growth.py --who "lineardit, within 8 GB" --name growth-bounded
    python benchmarks/growth.py --resume runs/growth.json    an hour in parts: what is in there stands

writes growth.md, growth-time.svg and growth-memory.svg into benchmarks/results. SANA-0.6B and its decoder
are those of `lineardit bench peers`, with the same random weights in both packages; DiT-XL/2 and its decoder
are those of `lineardit bench models`, from 256 pixels on. A picture is 20 guided steps and its decoding.
Within 8 GB ours reads its weights as they are needed, and computes in bands where a picture takes more.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lineardit.bench.attention import exponent
from lineardit.bench.memory import available_memory
from lineardit.bench.models import Row, measure_models
from lineardit.bench.peers import PARTS, STEPS, Contender, LeftOut, Measured, measure_peers
from lineardit.bench.peers_report import picture_seconds
from lineardit.bench.plot import line_plot
from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table, significant

RESULTS = Path(__file__).parent / "results"
QUADRATIC = "dit-xl/2"
WITHIN = "lineardit, within 8 GB"
BOUNDED = {WITHIN: Contender("lineardit", passes="native", most=8 * 10**9)}
NAMES = {
    "diffusers": "SANA-0.6B, diffusers",
    "lineardit, native": "SANA-0.6B, lineardit",
    WITHIN: "SANA-0.6B, lineardit within 8 GB",
}
SOFTMAX = "DiT-XL/2, softmax"


class Picture(NamedTuple):
    """What one picture takes; None where it was not measured, and `left_out` says why."""

    who: str
    pixels: int
    seconds: float | None
    taken: int | None
    """Bytes at most, beyond those held before: weights and libraries."""
    peak: int | None
    """Bytes that the process held at most."""
    left_out: str = ""


class Measuring:
    """Pictures that were measured, all in the same way; those in `place` stand, and what is added goes there.

    That the code is the same is for whoever gives the file to know.
    """

    def __init__(self, place: Path | None, *budgets: float) -> None:
        """Ends the program where `place` holds another machine's, or was measured with other budgets."""
        self.pictures: list[Picture] = []
        self._place, self._way = place, [stamp_line(hardware_stamp()), *budgets]
        if place is None or not place.is_file():
            return
        before = json.loads(place.read_text("utf-8"))
        if before["way"] != self._way:
            sys.exit(f"{place} was measured as {before['way']}, not {self._way}. Give another file.")
        self.pictures = [Picture(**each) for each in before["pictures"]]

    def has(self, who: str, pixels: int) -> bool:
        """Whether it need not be measured."""
        return any((each.who, each.pixels) == (who, pixels) for each in self.pictures)

    def too_large(self, name: str, pixels: int) -> str:
        """Why a picture of twice the side of one that was measured cannot fit, or nothing."""
        for each in self.pictures:
            if (each.who, each.pixels) == (NAMES[name], pixels // 2) and each.taken and name not in BOUNDED:
                expected, there = 4 * each.taken / 1e9, available_memory(torch.device("cpu")) / 1e9
                if expected > there:
                    return f"would take about {expected:.0f} GB beyond weights, over {there:.0f} GB"
        return ""

    def add(self, new: Picture) -> None:
        """Say it, keep it, and write it down."""
        sys.stderr.write(f"{new}\n")
        others = [each for each in self.pictures if (each.who, each.pixels) != (new.who, new.pixels)]
        self.pictures = [*others, new]
        if self._place is not None:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            given = {"way": self._way, "pictures": [each._asdict() for each in self.pictures]}
            part = self._place.with_name(f"{self._place.name}.part")
            part.write_text(json.dumps(given, indent=1), "utf-8")
            part.replace(self._place)


def of_peers(rows: Sequence[Measured | LeftOut]) -> list[Picture]:
    """A picture for each contender and size, made of its two parts."""
    pictures = []
    for who, pixels in dict.fromkeys((row.contender, row.pixels) for row in rows):
        parts = {row.part: row for row in rows if (row.contender, row.pixels) == (who, pixels)}
        reasons = [f"{row.part}: {row.reason}" for row in parts.values() if isinstance(row, LeftOut)]
        step, decode = parts["step"], parts["decode"]
        if isinstance(step, LeftOut) or isinstance(decode, LeftOut):
            pictures.append(Picture(NAMES[who], pixels, None, None, None, "; ".join(reasons)))
            continue
        taken = [row.peak - row.held for row in (step, decode) if row.peak and row.held]
        peak = max(row.peak or 0 for row in (step, decode))
        pictures.append(Picture(NAMES[who], pixels, picture_seconds(step, decode), max(taken), peak))
    return pictures


def of_softmax(row: Row) -> Picture:
    """Beyond its weights, whose number is counted."""
    counted, timed = row
    if timed.step_seconds is None or timed.decode_seconds is None:
        return Picture(SOFTMAX, counted.pixels, None, None, None, timed.left_out)
    seconds = STEPS * timed.step_seconds + timed.decode_seconds
    weights = counted.parameters * torch.bfloat16.itemsize
    peaks = [(timed.step_peak or 0) - weights, timed.decode_peak or 0]
    return Picture(SOFTMAX, counted.pixels, seconds, max(peaks), max(timed.step_peak or 0, peaks[1]))


def page(pictures: Sequence[Picture], command: str, name: str) -> str:
    """The table, and the fitted exponents; the plots have files of that name."""
    header = ["who", "pixels a side", "s a picture", "GB beyond weights", "peak, GB", "left out"]
    cells = [
        [
            each.who,
            str(each.pixels),
            "-" if each.seconds is None else significant(each.seconds),
            "-" if each.taken is None else significant(each.taken / 1e9),
            "-" if each.peak is None else significant(each.peak / 1e9),
            each.left_out or "-",
        ]
        for each in pictures
    ]
    lines = []
    for who in dict.fromkeys(each.who for each in pictures):
        times = {x: y for x, y in points(pictures, who, "seconds")}
        bytes_ = {x: y for x, y in points(pictures, who, "taken")}
        time, memory = exponent(times), exponent(bytes_)
        if time is not None and memory is not None:
            lines.append(
                f"- {who}: time grows with pixels to the power of {time:.2f}, memory beyond the weights of "
                f"{memory:.2f} ({len(times)} sizes)"
            )
    return (
        "# How a picture grows\n\n"
        f"`{command}`; {stamp_line(hardware_stamp())}; bf16, random weights.\n\n"
        f"A picture is {STEPS} guided steps and its decoding. Seconds are medians after a first call, or "
        "that call where it is long. GB beyond weights is the most that a part took beyond what its process "
        "held before; within 8 GB weights wait in their files, and those that are read count. Outputs of "
        "SANA were compared where diffusers has room.\n\n"
        f"{markdown_table(header, cells)}\n\n" + "\n".join(lines) + "\n\n"
        f"![time]({name}-time.svg)\n\n![memory]({name}-memory.svg)\n"
    )


def points(pictures: Sequence[Picture], who: str, what: str) -> list[tuple[int, float]]:
    """(pixels in all, value) of those that were measured."""
    own = [(each.pixels**2, getattr(each, what)) for each in pictures if each.who == who]
    return [(pixels, float(value)) for pixels, value in own if value is not None]


def plot(pictures: Sequence[Picture], what: str, title: str, label: str, unit: float) -> str:
    """Both axes logarithmic: a straight line of slope 1 is linear growth."""
    series = {
        who: [(float(x), y / unit) for x, y in points(pictures, who, what)]
        for who in dict.fromkeys(each.who for each in pictures)
    }
    kept = {who: line for who, line in series.items() if line}
    return line_plot(kept, title=title, x_label="pixels", y_label=label, log_x=True, log_y=True)


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pixels", default="512,1024,2048,4096")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds a measurement of SANA")
    parser.add_argument(
        "--softmax-budget", type=float, default=120.0, help="the most that a call of DiT may take"
    )
    parser.add_argument("--who", default="; ".join([QUADRATIC, *NAMES]), help="some of these")
    parser.add_argument("--name", default="growth", help="of the files")
    parser.add_argument("--resume", type=Path, help="JSON of what was measured, read and written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    sizes = [int(word) for word in options.pixels.split(",")]
    chosen = [word.strip() for word in options.who.split(";")]
    measuring = Measuring(options.resume, options.budget, options.softmax_budget)
    for size in [256, *sizes] if QUADRATIC in chosen else []:
        if not measuring.has(SOFTMAX, size):
            cpu = torch.device("cpu")
            for row in measure_models([QUADRATIC], [size], cpu, "bf16", options.softmax_budget):
                measuring.add(of_softmax(row))
    peers = [name for name in chosen if name != QUADRATIC]
    for size in sizes:
        if all(measuring.has(NAMES[name], size) for name in peers):
            continue
        too_large = {name: reason for name in peers if (reason := measuring.too_large(name, size))}
        for name, reason in too_large.items():
            measuring.add(Picture(NAMES[name], size, None, None, None, reason))
        fitting = [name for name in peers if name not in too_large]
        rows = (
            list(measure_peers(fitting, PARTS, [size], "bf16", options.budget, 0, BOUNDED)) if fitting else []
        )
        for picture in of_peers(rows):
            measuring.add(picture)
    names = {QUADRATIC: SOFTMAX, **NAMES}
    wanted = {(names[name], size) for name in chosen for size in (256, *sizes)}
    pictures = sorted(each for each in measuring.pictures if (each.who, each.pixels) in wanted)
    told = {"pixels": options.pixels, "budget": options.budget, "softmax-budget": options.softmax_budget}
    given = " ".join(f"--{name} {value}" for name, value in told.items())
    command = f'python benchmarks/growth.py {given} --who "{options.who}"'
    (options.output / f"{options.name}.md").write_text(page(pictures, command, options.name), "utf-8")
    time = plot(pictures, "seconds", "Time of a picture", "seconds", 1)
    (options.output / f"{options.name}-time.svg").write_text(time, "utf-8")
    memory = plot(pictures, "taken", "Memory of a picture beyond the weights", "GB", 1e9)
    (options.output / f"{options.name}-memory.svg").write_text(memory, "utf-8")


if __name__ == "__main__":
    main()
