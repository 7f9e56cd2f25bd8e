"""SANA-0.6B's step and decoding beside diffusers, call by call in turn in one process.

    python benchmarks/turns.py                       512 and 1024 pixels, about ten minutes
    python benchmarks/turns.py --pixels 512 --rounds 5
    python benchmarks/turns.py --freeze             diffusers is compiled with its weights as constants
    python benchmarks/turns.py --dtype fp32 --pixels 512 --output benchmarks/results/turns-fp32.md

writes benchmarks/results/turns.md. On a machine that others use too, contenders that run one after the other
for minutes, as in `lineardit bench peers`, meet different machines. Here every round makes one call of each,
and what counts is the ratio of the calls of a round. Weights are the same; freed memory is kept for all.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.bench.peers import AUTOENCODER, NEAR, STEPS, STRIDE, TOKENS, TOLD, TRANSFORMER
from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table, significant
from lineardit.config.presets import autoencoder_preset, transformer_preset
from lineardit.interop.diffusers import from_diffusers_autoencoder, from_diffusers_transformer
from lineardit.interop.diffusers_config import (
    autoencoder_config_to_diffusers,
    transformer_config_to_diffusers,
)
from lineardit.kernels import native
from lineardit.kernels.allocator import keep_freed_memory
from lineardit.nn.packed import pack_blocks
from lineardit.transformer.model import Transformer

RESULT = Path(__file__).parent / "results" / "turns.md"
SEED = 7
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Call = Callable[[], Tensor]
EAGER, COMPILED, OURS = "diffusers", "diffusers compiled", "lineardit"


def seeded(kind: Any, options: Any, dtype: torch.dtype) -> Any:
    """A network of diffusers with random weights."""
    torch.manual_seed(SEED)
    given = {name: value for name, value in options.items() if name != "_class_name"}
    return kind(**given).to(dtype).eval()


def steps(dtype: torch.dtype) -> tuple[Callable[[int], dict[str, Call]], float]:
    """For a size, a guided step of each; and the seconds in which ours reads the prompt a second time."""
    from diffusers import SanaTransformer2DModel

    config = transformer_preset(TRANSFORMER)
    theirs = seeded(SanaTransformer2DModel, transformer_config_to_diffusers(config), dtype)
    ours = Transformer(config).to(dtype).eval()
    ours.load_state_dict(from_diffusers_transformer(config, theirs.state_dict()))
    pack_blocks(ours)  # as every process that draws does
    compiled = torch.compile(theirs, dynamic=False)
    text = torch.randn(2, TOKENS, config.text_width).to(dtype)
    mask = torch.arange(TOKENS) < torch.tensor(TOLD)[:, None]
    times = torch.full((1,), 0.6)
    given = {"timestep": times.repeat(2) * config.time_scale, "encoder_attention_mask": mask.to(dtype)}
    read, seconds = ours.read(text, mask), []
    for _ in range(3):
        start = time.perf_counter()
        read = ours.read(text, mask)
        seconds.append(time.perf_counter() - start)

    def calls(pixels: int) -> dict[str, Call]:
        side = pixels // STRIDE
        latents = torch.randn(1, config.latent_channels, side, side).to(dtype)
        twice = latents.repeat(2, 1, 1, 1)
        return {
            EAGER: lambda: theirs(twice, text, **given, return_dict=False)[0],
            COMPILED: lambda: compiled(twice, text, **given, return_dict=False)[0],
            OURS: lambda: ours(latents, times, read),
        }

    return calls, statistics.median(seconds)


def decodes(dtype: torch.dtype) -> Callable[[int], dict[str, Call]]:
    """For a size, the decoding of one picture by each."""
    from diffusers import AutoencoderDC

    config = autoencoder_preset(AUTOENCODER)
    theirs = seeded(AutoencoderDC, autoencoder_config_to_diffusers(config), dtype)
    ours = Autoencoder(config).to(dtype).eval()
    ours.load_state_dict(from_diffusers_autoencoder(config, theirs.state_dict()))
    compiled, scale = torch.compile(theirs.decoder, dynamic=False), config.latent_scale[0]

    def calls(pixels: int) -> dict[str, Call]:
        side = pixels // STRIDE
        latents = torch.randn(1, config.latent_channels, side, side).to(dtype)
        return {
            EAGER: lambda: theirs.decoder(latents),
            COMPILED: lambda: compiled(latents),
            OURS: lambda: ours.decode(latents * scale),
        }

    return calls


def in_turn(calls: dict[str, Call], rounds: int, near: float) -> dict[str, list[float]]:
    """Seconds of each in every round, after a first call whose outputs are compared."""
    wanted = calls[EAGER]().float()
    for who, call in calls.items():
        apart = float((call().float() - wanted).square().mean().sqrt() / wanted.std())
        if not apart <= near:
            sys.exit(f"{who} is {apart:.1e} from {EAGER}: no speed is told.")
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    for _ in range(rounds):
        for who, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[who].append(time.perf_counter() - start)
    return seconds


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pixels", default="512,1024")
    parser.add_argument("--rounds", type=int, default=5, help="of steps; decoding has half as many")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument(
        "--freeze", action="store_true", help="let the compiler of diffusers pack weights, too (freezing)"
    )
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch._inductor.config.freezing = options.freeze
    keep_freed_memory()
    native.use("native")
    sizes = [int(word) for word in options.pixels.split(",")]
    parts: dict[tuple[str, int], dict[str, list[float]]] = {}

    def measure(part: str, calls: Callable[[int], dict[str, Call]], rounds: int) -> None:
        for pixels in sizes:
            parts[part, pixels] = in_turn(calls(pixels), rounds, NEAR[options.dtype])
            medians = {who: statistics.median(each) for who, each in parts[part, pixels].items()}
            sys.stderr.write(f"{part}, {pixels}: {medians}\n")

    with torch.no_grad():
        calls, once = steps(DTYPES[options.dtype])
        measure("guided step", calls, options.rounds)
        measure("decoding", decodes(DTYPES[options.dtype]), -(-options.rounds // 2))
    rows = []
    for (part, pixels), seconds in sorted(parts.items(), key=lambda item: item[0][1]):
        times = [significant(statistics.median(seconds[who])) for who in (EAGER, COMPILED, OURS)]
        ratios = [f"{median_ratio(seconds[who], seconds[OURS]):.2f}" for who in (EAGER, COMPILED)]
        rows.append([str(pixels), part, *times, *ratios])
    pictures = []
    for pixels in sizes:
        step, decode = parts["guided step", pixels], parts["decoding", pixels]
        middle = {who: STEPS * statistics.median(step[who]) + statistics.median(decode[who]) for who in step}
        middle[OURS] += once
        ratios = [f"{middle[who] / middle[OURS]:.2f}" for who in (EAGER, COMPILED)]
        pictures.append([str(pixels), *(significant(middle[who]) for who in middle), *ratios])
    times = [f"{who}, s" for who in (EAGER, COMPILED, OURS)]
    ratios = [f"{who} / ours" for who in (EAGER, COMPILED)]
    given = f"--pixels {options.pixels} --rounds {options.rounds} --dtype {options.dtype}"
    given += " --freeze" * options.freeze
    page = [
        "# Side by side, call by call",
        f"`python benchmarks/turns.py {given}`; {stamp_line(hardware_stamp())}; {options.dtype}.",
        f"SANA-0.6B's shape and f32c32's decoder, random weights, prompts of {TOLD[1]} and {TOLD[0]} tokens "
        f"padded to {TOKENS}. One process, freed memory kept for all, outputs compared; every round calls "
        "each once. Seconds are medians; ratios of parts are medians over the rounds. Ours reads the prompt "
        f"once a picture, {significant(once)} s, which is in the pictures below.",
        markdown_table(["pixels", "part", *times, *ratios], rows),
        f"A picture of {STEPS} guided steps, from these medians:",
        markdown_table(["pixels", *times, *ratios], pictures),
    ]
    text = "\n\n".join(page) + "\n"
    options.output.write_text(text, "utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
