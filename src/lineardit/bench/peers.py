"""SANA's transformer and decoder beside those of diffusers, with the same weights, each in its own process.

A speed counts only once the outputs were compared. Every contender draws the same weights and inputs from one
seed, runs the same sizes, and writes what it computed; the first one is what the others are held against.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.bench.process import answer_of
from lineardit.config.presets import autoencoder_preset, transformer_preset
from lineardit.errors import InputError, LineardiTError
from lineardit.interop.diffusers import from_diffusers_autoencoder, from_diffusers_transformer
from lineardit.interop.diffusers_config import (
    autoencoder_config_to_diffusers,
    transformer_config_to_diffusers,
)
from lineardit.kernels import native
from lineardit.kernels.allocator import keep_freed_memory, resident_bytes
from lineardit.kernels.select import DTYPES
from lineardit.nn.int8 import quantize_linears
from lineardit.transformer.model import Transformer

TRANSFORMER, AUTOENCODER = "sana-0.6b", "dc-ae-f32c32-sana-1.0"
STRIDE = 32
TOKENS, TOLD = 300, (2, 60)
"""Tokens that prompts are padded to, and those that are there: of an empty prompt and of some sentences."""
STEPS = 20
PARTS = ("step", "decode")
NEAR = {"fp32": 1e-3, "bf16": 0.06}
"""Root mean square of the difference over the deviation of the first contender's output, at most."""
SEED = 7


class Contender(NamedTuple):
    """Who computes, and how."""

    package: str
    """diffusers or lineardit."""
    compiled: bool = False
    kept: bool = False
    """Freed memory is kept (`kernels.allocator`)."""
    passes: str = "torch"
    int8: bool = False
    """The transformer's layers are int8 (`nn.int8`)."""


CONTENDERS = {
    "diffusers": Contender("diffusers"),
    "diffusers, memory kept": Contender("diffusers", kept=True),
    "diffusers compiled, memory kept": Contender("diffusers", compiled=True, kept=True),
    "lineardit, torch": Contender("lineardit", kept=True),
    "lineardit, native": Contender("lineardit", kept=True, passes="native"),
    "lineardit, int8": Contender("lineardit", kept=True, passes="native", int8=True),
}


class Measured(NamedTuple):
    """One contender at one size."""

    contender: str
    part: str
    pixels: int
    seconds: float
    """Median."""
    calls: int
    first: float
    """Seconds of the first call: warming up and compiling."""
    once: float
    """Seconds that are spent once a picture, in reading the prompt."""
    peak: int | None
    """Bytes that the process held at most, weights included."""
    apart: float
    """From the first contender's output, over its deviation."""


def measure_peers(
    names: Sequence[str], parts: Sequence[str], pixels: Sequence[int], dtype: str, budget: float, threads: int
) -> Iterator[Measured]:
    """Rows, contender by contender; each measurement takes about `budget` seconds, three calls at least.

    Raises:
        InputError: an unknown contender or dtype.
        LineardiTError: an output is not that of the first contender.
    """
    for name in names:
        if name not in CONTENDERS:
            raise InputError(f"unknown contender {name!r}. Use some of {'; '.join(CONTENDERS)}.")
    if dtype not in NEAR:
        raise InputError(f"dtype={dtype} is not compared. Use one of {', '.join(NEAR)}.")
    first: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            place = Path(folder) / f"{number}.safetensors"
            given = [list(CONTENDERS[name]), list(parts), list(pixels), dtype, budget, threads, str(place)]
            answers = answer_of(_CHILD, given)
            outputs = load_file(place)
            first = first or outputs
            for key, answer in answers.items():
                part, size = key.split(" ")
                off = _apart(outputs[key], first[key])
                near = NEAR["bf16" if CONTENDERS[name].int8 else dtype]
                if not off <= near:
                    raise LineardiTError(
                        f"{name} is {off:.1e} from {names[0]} in {key} pixels, more than {near:g}: "
                        "no speed is told."
                    )
                yield Measured(name, part, int(size), **answer, apart=off)


_CHILD = """
from lineardit.bench.peers import run_contender
print(json.dumps(run_contender(*arguments)))
"""


def run_contender(
    contender: Sequence[Any],
    parts: Sequence[str],
    pixels: Sequence[int],
    dtype: str,
    budget: float,
    threads: int,
    place: str,
) -> dict[str, dict[str, Any]]:
    """Measure in this process, write the outputs to `place`, and return the fields of `Measured`."""
    own = Contender(*contender)
    if threads:
        torch.set_num_threads(threads)
    answers, outputs = {}, {}
    for part in parts:
        with torch.no_grad():
            work = (_stepping if part == "step" else _decoding)(own, DTYPES[dtype])
            if own.kept:
                keep_freed_memory()
            native.use(own.passes)
            for size in pixels:
                begin = time.perf_counter()
                call = work(size)
                once = time.perf_counter() - begin
                _forget_peak()
                seconds, out = _timed(call, budget)
                outputs[f"{part} {size}"] = out.float().contiguous()
                answers[f"{part} {size}"] = {
                    "seconds": statistics.median(seconds[1:]),
                    "calls": len(seconds) - 1,
                    "first": seconds[0],
                    "once": once,
                    "peak": resident_bytes("VmHWM"),
                }
        del work, call
    save_file(outputs, place)
    return answers


def _timed(call: Callable[[], Tensor], budget: float) -> tuple[list[float], Tensor]:
    seconds: list[float] = []
    while len(seconds) < 4 or (sum(seconds[1:]) < budget and len(seconds) < 40):
        begin = time.perf_counter()
        out = call()
        seconds.append(time.perf_counter() - begin)
    return seconds, out


def _stepping(own: Contender, dtype: torch.dtype) -> Callable[[int], Callable[[], Tensor]]:
    """(pixels) -> a guided step; what is done once a picture is done before it is returned."""
    from diffusers import SanaTransformer2DModel

    config = transformer_preset(TRANSFORMER)
    theirs = _built(SanaTransformer2DModel, transformer_config_to_diffusers(config), dtype)
    mask = torch.arange(TOKENS) < torch.tensor(TOLD)[:, None]
    text = _randn(2, TOKENS, config.text_width).to(dtype)
    times = torch.full((2,), 0.6)
    if own.package == "diffusers":
        network = torch.compile(theirs) if own.compiled else theirs

        def their_step(size: int) -> Callable[[], Tensor]:
            latents = _latents(config.latent_channels, size).to(dtype)
            given = {"timestep": times * config.time_scale, "encoder_attention_mask": mask.to(dtype)}
            return lambda: network(latents, text, **given, return_dict=False)[0]

        return their_step
    ours = _ours(Transformer, config, from_diffusers_transformer(config, theirs.state_dict()))
    del theirs
    if own.int8:
        native.use(own.passes)
        quantize_linears(ours.blocks)

    def our_step(size: int) -> Callable[[], Tensor]:
        latents, read = _latents(config.latent_channels, size).to(dtype), ours.read(text, mask)
        return lambda: ours(latents, times, read)

    return our_step


def _decoding(own: Contender, dtype: torch.dtype) -> Callable[[int], Callable[[], Tensor]]:
    from diffusers import AutoencoderDC

    config = autoencoder_preset(AUTOENCODER)
    theirs = _built(AutoencoderDC, autoencoder_config_to_diffusers(config), dtype)
    scale = config.latent_scale[0]
    if own.package == "diffusers":
        decode = torch.compile(theirs.decoder) if own.compiled else theirs.decoder

        def their_decode(size: int) -> Callable[[], Tensor]:
            latents = _latents(config.latent_channels, size)[:1].to(dtype)
            return lambda: decode(latents)

        return their_decode
    state = from_diffusers_autoencoder(config, theirs.state_dict())
    ours = _ours(Autoencoder, config, state).to(dtype)  # shift and scale too
    del theirs

    def our_decode(size: int) -> Callable[[], Tensor]:
        latents = _latents(config.latent_channels, size)[:1].to(dtype) * scale
        return lambda: ours.decode(latents)

    return our_decode


def _built(kind: Any, options: Mapping[str, Any], dtype: torch.dtype) -> Any:
    torch.manual_seed(SEED)
    network = kind(**{key: value for key, value in options.items() if key != "_class_name"})
    return network.to(dtype).eval()


def _ours(kind: Any, config: Any, state: Mapping[str, Tensor]) -> Any:
    with torch.device("meta"):
        network = kind(config)
    network.load_state_dict(state, assign=True)
    return network.eval()


def _latents(channels: int, size: int) -> Tensor:
    return _randn(2, channels, size // STRIDE, size // STRIDE)


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.std())


def _forget_peak() -> None:
    """From here on the highest memory is counted anew, where Linux lets a process do that."""
    place = Path("/proc/self/clear_refs")
    if place.exists():
        place.write_text("5", "ascii")
