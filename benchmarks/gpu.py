"""A picture of SANA-0.6B on a GPU: with torch alone, with Triton's kernels, compiled, and beside diffusers.

    python benchmarks/gpu.py                                 512 to 4096 pixels a side, in bf16
    python benchmarks/gpu.py --pixels 1024 --budget 5
    python benchmarks/gpu.py --device cpu --pixels 64        only to see that it runs

writes benchmarks/results/gpu.md. A picture is 20 guided steps of DPM-Solver++ and its decoding, with random
weights, the same for all; diffusers takes part where it is installed, with the same sampler. Whose step or
decoding is not that of the first has no time. The operator alone: `lineardit bench attention --device cuda`.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.bench.clock import Cost, measure
from lineardit.bench.peers import AUTOENCODER, NEAR, STEPS, STRIDE, TOKENS, TOLD, TRANSFORMER
from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table, significant
from lineardit.config.presets import autoencoder_preset, transformer_preset
from lineardit.diffusion.guidance import guided
from lineardit.diffusion.samplers import dpm_solver_pp_2m
from lineardit.diffusion.times import dpm_flow_times
from lineardit.interop.diffusers import to_diffusers_autoencoder, to_diffusers_transformer
from lineardit.interop.diffusers_config import (
    autoencoder_config_to_diffusers,
    transformer_config_to_diffusers,
)
from lineardit.kernels import native, operators
from lineardit.pipeline.compiled import Compiled, compile_decoder
from lineardit.transformer.model import Transformer

RESULT = Path(__file__).parent / "results" / "gpu.md"
SCALE, SHIFT = 4.5, 3.0
Call = Callable[..., Tensor]


class Way(NamedTuple):
    """One way to compute."""

    name: str
    kernels: str
    """As `native.use` takes it."""
    step: Call
    """Latents and times of 2b pictures to velocities."""
    decode: Call


class Drawn(NamedTuple):
    """What it took at one size."""

    who: str
    pixels: int
    step: Cost | None
    decode: Cost | None
    picture: Cost | None
    apart: float
    """Of step and decoding the one that is farther from the first way's, over its deviation."""


def ways(device: torch.device) -> Iterator[Way]:
    """One after the other, since what is compiled in place stays so; the networks of ours are shared."""
    config, shape = transformer_preset(TRANSFORMER), autoencoder_preset(AUTOENCODER)
    torch.manual_seed(0)
    with device:
        transformer, autoencoder = Transformer(config), Autoencoder(shape)
    torch.nn.init.normal_(transformer.to_velocity.weight, std=0.02)  # it starts at zero
    transformer, autoencoder = transformer.bfloat16().eval(), autoencoder.bfloat16().eval()
    text = torch.randn(2, TOKENS, config.text_width, device=device, dtype=torch.bfloat16)
    mask = torch.arange(TOKENS, device=device) < torch.tensor(TOLD, device=device)[:, None]
    read = transformer.read(text, mask)

    def step(latents: Tensor, times: Tensor) -> Tensor:
        return transformer(latents[:1].bfloat16(), times[:1], read).float()  # both are one

    yield Way("torch", "torch", step, autoencoder.decode)
    if find_spec("diffusers") is not None:
        yield from _diffusers(transformer, autoencoder, text, mask)
    yield Way("Triton's kernels", "auto", step, autoencoder.decode)
    compiled = Compiled(transformer)
    compile_decoder(autoencoder)
    yield Way(
        "Triton's kernels, compiled",
        "auto",
        lambda latents, times: compiled(latents[:1].bfloat16(), times[:1], read, None).float(),
        lambda latents: autoencoder.decode(latents).clone(),
    )


def _diffusers(
    transformer: Transformer, autoencoder: Autoencoder, text: Tensor, mask: Tensor
) -> Iterator[Way]:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    def peer(kind: Any, options: Any, tensors: Any) -> Any:
        given = {name: value for name, value in options.items() if name != "_class_name"}
        network = kind(**given).to(text).eval()
        network.load_state_dict({name: tensors[name] for name in tensors})
        return network

    config, shape = transformer.config, autoencoder.config
    tensors = to_diffusers_transformer(config, transformer.state_dict())
    network = peer(SanaTransformer2DModel, transformer_config_to_diffusers(config), tensors)
    tensors = to_diffusers_autoencoder(shape, autoencoder.state_dict())
    decoder = peer(AutoencoderDC, autoencoder_config_to_diffusers(shape), tensors).decoder
    fast = [torch.compile(each, mode="reduce-overhead", dynamic=False) for each in (network, decoder)]
    for name, run, decode in (("diffusers", network, decoder), ("diffusers compiled", *fast)):

        def step(latents: Tensor, times: Tensor, run: Any = run) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            scaled = times * config.time_scale
            given = {"timestep": scaled, "encoder_attention_mask": mask.to(text), "return_dict": False}
            return run(latents.bfloat16(), text, **given)[0].float()

        def pixels(latents: Tensor, decode: Any = decode) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return decode(latents / shape.latent_scale[0]).clone()

        yield Way(name, "torch", step, pixels)


def drawn(
    way: Way, sizes: list[int], budget: float, device: torch.device, wanted: dict[int, list[Tensor]]
) -> Iterator[Drawn]:
    """At every size; the first way fills in what is `wanted`."""
    channels = transformer_preset(TRANSFORMER).latent_channels
    times = dpm_flow_times(STEPS, SHIFT)
    with native.using(way.kernels):
        for pixels in sizes:
            side = pixels // STRIDE
            noise = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(pixels)).to(
                device
            )
            pair, at = torch.cat([noise, noise]), torch.full((2,), 0.6, device=device)
            try:
                found = [way.step(pair, at), way.decode(noise.bfloat16()).float()]
                apart = max(map(_apart, found, wanted.setdefault(pixels, found)))
                if not apart <= NEAR["bf16"]:
                    yield Drawn(way.name, pixels, None, None, None, apart)
                    continue

                def picture(noise: Tensor = noise) -> Tensor:
                    for state in dpm_solver_pp_2m(guided(way.step, SCALE), noise, times):
                        latents = state.denoised
                    return way.decode(latents.bfloat16())

                yield Drawn(
                    way.name,
                    pixels,
                    measure(lambda pair=pair, at=at: way.step(pair, at), device, budget),
                    measure(lambda noise=noise: way.decode(noise.bfloat16()), device, budget),
                    measure(picture, device, budget),
                    apart,
                )
            except torch.OutOfMemoryError:
                yield Drawn(way.name, pixels, None, None, None, math.nan)


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.std())


def page(rows: list[Drawn], command: str, device: torch.device) -> str:
    """A table for each size, and why Triton's kernels were not taken, where they were not."""
    first = {row.pixels: row for row in reversed(rows)}
    cells = []
    for row in sorted(rows, key=lambda row: row.pixels):
        costs, base = (row.step, row.decode, row.picture), first[row.pixels].picture
        seconds = ["-" if cost is None else significant(cost.seconds) for cost in costs]
        ratio = "-" if row.picture is None or base is None else f"{base.seconds / row.picture.seconds:.2f}"
        peaks = [cost.peak for cost in costs if cost is not None and cost.peak is not None]
        peak = significant(max(peaks) / 1e9) if peaks else "-"
        cells.append([str(row.pixels), row.who, *seconds, ratio, peak, f"{row.apart:.1e}"])
    header = ["pixels", "who", "s a guided step", "s decoding", "s a picture", "times the first"]
    header += ["GB beyond weights", "apart"]
    refused = "".join(f"\n- Triton's kernels were not taken: {reason}" for reason in operators.REFUSALS)
    return (
        "# A picture on a GPU\n\n"
        f"`{command}`; {stamp_line(hardware_stamp())}; on {device}, bf16.\n\n"
        f"{TRANSFORMER} and {AUTOENCODER} with random weights, {STEPS} guided steps, prompts of {TOLD[1]} "
        f"and {TOLD[0]} tokens padded to {TOKENS} for diffusers. Medians after first calls, compiling and "
        "recording of graphs among these. Apart is the root mean square to the first's over its "
        f"deviation; beyond {NEAR['bf16']:g} nothing is timed.\n\n"
        f"{markdown_table(header, cells)}\n{refused}"
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pixels", default="512,1024,2048,4096")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds a measurement")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    device, sizes = torch.device(options.device), [int(word) for word in options.pixels.split(",")]
    rows: list[Drawn] = []
    wanted: dict[int, list[Tensor]] = {}
    command = f"python benchmarks/gpu.py --pixels {options.pixels} --budget {options.budget:g}"
    text = ""
    with torch.no_grad():
        for way in ways(device):
            for row in drawn(way, sizes, options.budget, device, wanted):
                sys.stderr.write(f"{row}\n")
                rows.append(row)
            # What follows may not run at all.
            text = page(rows, f"{command} --device {options.device}", device)
            options.output.write_text(text, "utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
