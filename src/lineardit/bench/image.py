"""Where the time of one picture goes: import, load, text, denoise, decode, each in a fresh process."""

import statistics
import time
from typing import NamedTuple

from lineardit.bench.process import answer_of

WARM_UPS = 1
"""Processes before the measured ones: they fill the file cache."""
PARTS = ("import", "load", "text", "denoise", "decode", "write")

_CHILD = """
import time
start = time.perf_counter()
marks = {}
def mark(name):
    global start
    now = time.perf_counter()
    marks[name] = now - start
    start = time.perf_counter()
prompt, steps, model, threads, dtype = arguments
import torch
if threads:
    torch.set_num_threads(threads)
from io import BytesIO
from lineardit.data.pictures import to_picture
from lineardit.pipeline import Pipeline
mark("import")
pipe = Pipeline.from_pretrained(model, device="cpu", dtype=dtype)
mark("load")
jobs = pipe.plan(prompt, num_inference_steps=steps)
text = pipe.embed(jobs)
mark("text")
for state in pipe.states(jobs, text):
    pass
mark("denoise")
pixels = pipe.decode(state.latents)
mark("decode")
to_picture(pixels[0]).save(BytesIO(), "PNG")
mark("write")
print(json.dumps(marks))
"""


class ColdSplit(NamedTuple):
    """Medians over fresh processes, in seconds."""

    parts: dict[str, float]
    """What happens inside Python, by part."""
    whole: float
    """From starting the process to its end: what a user at a shell waits for."""


def measure_cold_split(
    prompt: str,
    *,
    model: str | None = None,
    steps: int = 20,
    runs: int = 5,
    threads: int = 0,
    dtype: str = "fp32",
) -> ColdSplit:
    """Draw one picture in `runs` fresh processes, after one that warms the file cache."""
    rows, wholes = [], []
    for number in range(WARM_UPS + runs):
        begin = time.perf_counter()
        parts = answer_of(_CHILD, [prompt, steps, model, threads, dtype])
        if number >= WARM_UPS:
            wholes.append(time.perf_counter() - begin)
            rows.append(parts)
    medians = {part: statistics.median(row[part] for row in rows) for part in PARTS}
    return ColdSplit(medians, statistics.median(wholes))
