"""What the native convolutions and products take and round, beside oneDNN and MKL.

    python benchmarks/products.py

writes benchmarks/results/products.md, in two minutes. Times are medians, with freed memory kept; errors
are the length of the difference to float64 over its length. The last table is the bundled autoencoder in
bfloat16.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lineardit.autoencoder.model import Autoencoder
from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.interop.bundled import bundled_folder
from lineardit.interop.native import read_model
from lineardit.kernels import native, passes
from lineardit.kernels.allocator import keep_freed_memory
from lineardit.kernels.convolution import convolved, convolved_doubled
from lineardit.kernels.int8 import int8_linear, quantized_rows
from lineardit.nn.attention import CrossAttention

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PICTURES = ((128, 512), (256, 256), (512, 128))
"""Channels and side, as in f32c32's decoder at 512 pixels."""
PRODUCTS = ((512, 1152, 3456), (512, 2880, 1152), (2048, 1152, 5760))
"""Rows, and the widths of a layer, as in SANA-0.6B."""
WIDTH, HEAD, COUNT, TOKENS = 1152, 72, 1024, (2, 16, 31, 60)
"""Of its attention to the prompt: width, that of a head, tokens of a picture, tokens of prompts."""
CALLS, WARM_UPS = 7, 2


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def on_paths(run: Callable[[], Tensor]) -> dict[str, tuple[float, Tensor]]:
    """Seconds and result, by torch's operators and by the native passes."""
    found = {}
    for path in ("torch", "native"):
        with native.using(path):
            seconds = []
            for _ in range(WARM_UPS + CALLS):
                start = time.perf_counter()
                out = run()
                seconds.append(time.perf_counter() - start)
        found[path] = statistics.median(seconds[WARM_UPS:]), out
    return found


def row(name: str, dtype: str, run: Callable[[], Tensor], exact: Tensor | None) -> list[str]:
    """Milliseconds and errors of both."""
    found = on_paths(run)
    times = [f"{1e3 * found[path][0]:.1f}" for path in ("torch", "native")]
    ratio = found["torch"][0] / found["native"][0]
    errors = ["-", "-"]
    if exact is not None:
        errors = [f"{float((out.double() - exact).norm() / exact.norm()):.1e}" for _, out in found.values()]
    return [name, dtype, *times, f"{ratio:.2f}", *errors]


def convolutions() -> list[list[str]]:
    """3x3 with SiLU, and of a doubled picture with half the channels; errors on a corner, of wide tiles."""
    rows = []
    for dtype, kind in DTYPES.items():
        for channels, side in PICTURES:
            x = randn(1, channels, side, side).to(kind).to(memory_format=torch.channels_last)
            weight = (randn(channels, channels, 3, 3) / (9 * channels) ** 0.5).to(kind)
            corner = x[..., :32, :32].contiguous()
            exact = functional.conv2d(corner.double(), weight.double(), padding=1)
            errors = row("", dtype, lambda a=corner, b=weight: convolved(a, b, None), exact)[-2:]
            name = f"3x3 and SiLU, {channels} channels, {side} x {side}"
            timed = row(name, dtype, lambda a=x, b=weight: convolved(a, b, None, silu=True), None)
            rows.append([*timed[:-2], *errors])
            half = weight[: channels // 2]
            name = (
                f"doubled, then 3x3, {channels} to {channels // 2} channels, from {side // 2} x {side // 2}"
            )
            small = x[..., : side // 2, : side // 2].contiguous(memory_format=torch.channels_last)
            run = lambda a=small, b=half: convolved_doubled(a, b, None, shortcut=True)  # noqa: E731
            rows.append(row(name, dtype, run, None))
    return rows


def products() -> list[list[str]]:
    """Linear layers."""
    rows = []
    for dtype, kind in DTYPES.items():
        for count, width, out in PRODUCTS:
            x, weight = randn(count, width).to(kind), (randn(out, width) / width**0.5).to(kind)
            exact = x.double() @ weight.double().T
            name = f"{count} rows, {width} to {out}"
            rows.append(row(name, dtype, lambda a=x, b=weight: passes.linear(a, b, None), exact))
    return rows


def int8_products() -> list[list[str]]:
    """Linear layers of int8, from rounding the rows of x to the result; errors are those of the rounding."""
    rows = []
    for count, width, out in PRODUCTS:
        x, weight = randn(count, width).bfloat16(), (randn(out, width) / width**0.5).bfloat16()
        rounded = quantized_rows(weight)
        exact = x.double() @ weight.double().T
        name = f"{count} rows, {width} to {out}"
        rows.append(row(name, "int8", lambda a=x, b=rounded: int8_linear(a, *b), exact))
    return rows


def prompts() -> list[list[str]]:
    """Cross-attention to one prompt, with the layers around it; torch's attention, and prompts folded in."""
    rows = []
    for dtype, kind in DTYPES.items():
        layer = CrossAttention(WIDTH, HEAD).to(kind)
        exact_layer = CrossAttention(WIDTH, HEAD).double()
        for number, each in enumerate(layer.parameters()):
            # Scores of several units, so that shares are far from equal.
            each.copy_(2 * randn(*each.shape, 2 + number)[..., 0] / WIDTH**0.5)
        exact_layer.load_state_dict(layer.state_dict())
        for tokens in TOKENS:
            x, text = randn(1, COUNT, WIDTH).to(kind), randn(tokens, WIDTH).to(kind)
            reads = {}
            for path in ("torch", "native"):
                with native.using(path):
                    reads[path] = layer.read(text, (tokens,))
            exact = exact_layer(x.double(), text[None].double())
            run = lambda a=x, n=layer, r=reads: n(a, r["native" if native.is_in_use() else "torch"])  # noqa: E731
            rows.append(row(f"{COUNT} tokens, a prompt of {tokens}", dtype, run, exact))
    return rows


def bundled() -> str:
    """How far its pictures in bfloat16 are from those in float32, of 255."""
    component = read_model(bundled_folder()).components["autoencoder"]
    exact, rounded = (Autoencoder(component.config).eval() for _ in range(2))
    for network in (exact, rounded):
        network.load_state_dict(component.tensors)
    rounded = rounded.bfloat16()
    scenes = EmojiScenes(SceneConfig(), 3, "held_out", phrasing="train")
    latents = exact.encode(scenes.draw([scenes.scene(number) for number in range(8)], size=256))
    wanted = exact.decode(latents)
    rows = []
    for path in ("torch", "native"):
        with native.using(path):
            apart = rounded.decode(latents.bfloat16()).float() - wanted
        rows.append([path, f"{float(apart.square().mean().sqrt()) * 127.5:.3f}"])
    return markdown_table(["passes", "root mean square of the difference, of 255"], rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "products.md")
    options = parser.parse_args()
    keep_freed_memory()
    header = ["what", "dtype", "torch, ms", "native, ms", "times as fast", "error, torch", "error, native"]
    with torch.no_grad():
        work = convolutions, products, int8_products, prompts
        tables = [*(markdown_table(header, each()) for each in work), bundled()]
    titles = [
        "## Convolutions",
        "## Products",
        "## Products of int8",
        "## Attention to a prompt, with the layers before and after",
        "## The bundled autoencoder in bfloat16, from itself in float32",
    ]
    stamp = f"`python benchmarks/products.py`; {stamp_line(hardware_stamp())}; freed memory kept."
    parts = [f"{title}\n\n{table}" for title, table in zip(titles, tables, strict=True)]
    text = "\n\n".join(["# Native convolutions and products", stamp, *parts]) + "\n"
    options.output.write_text(text, "utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
