"""Whole networks with random weights: what they hold and compute, and what a step takes on this machine.

Operations are counted, not quoted: every network runs once on the meta device under torch's counter.
Speed does not depend on what the weights say. Each network is timed in a process of its own.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lineardit.autoencoder.model import Autoencoder
from lineardit.bench.clock import measure, operations_per_second
from lineardit.bench.memory import available_memory, peak_memory
from lineardit.bench.pixart import PixArtLike
from lineardit.bench.process import answer_of
from lineardit.config.dit import dit_preset
from lineardit.config.presets import autoencoder_preset, transformer_preset
from lineardit.errors import InputError, LineardiTError
from lineardit.kernels import native
from lineardit.kernels.select import DTYPES
from lineardit.transformer.dit import SoftmaxDiT
from lineardit.transformer.model import Transformer

GUIDED = 2
"""Forward passes a step: with the prompt and without it."""
MEMORY_SHARE = 0.9
SMALL = 0.02
PROBE = 1024
"""Side of the matrix product that says how fast this machine multiplies."""

Inputs = Callable[[int, int], dict[str, Any]]
"""(batch, latent side) -> the arguments of a forward pass, on the default device."""


class Decoder(NamedTuple):
    """Latents to pixels."""

    build: Callable[[], nn.Module]
    channels: int
    stride: int
    """Pixels per latent and side."""


class Subject(NamedTuple):
    """A network to measure."""

    build: Callable[[], nn.Module]
    inputs: Inputs
    decoder: Decoder
    steps: int
    """Guided steps that the article, or else the model's own documentation, draws a picture in."""
    pixels: tuple[int, ...]
    patch: int
    """Latents per token and side."""
    package: str | None = None
    """What must be installed for it."""


class Counted(NamedTuple):
    """What holds on every machine."""

    name: str
    pixels: int
    steps: int
    tokens: int
    parameters: int
    forward_flops: int
    """Of one forward pass of one picture; a multiply-add is two operations."""
    decoder_flops: int | None
    """None where the decoder's package is not installed."""

    @property
    def image_flops(self) -> int | None:
        """Of a picture: guided steps, then the decoder. The text encoder comes on top."""
        if self.decoder_flops is None:
            return None
        return self.steps * GUIDED * self.forward_flops + self.decoder_flops


class Timed(NamedTuple):
    """What was measured here; None where it was not, and `left_out` says why."""

    step_seconds: float | None = None
    step_peak: int | None = None
    """Bytes of weights and activations."""
    decode_seconds: float | None = None
    decode_peak: int | None = None
    left_out: str = ""


class Row(NamedTuple):
    """One network at one size."""

    counted: Counted
    timed: Timed


def _dit_inputs(batch: int, side: int) -> dict[str, Any]:
    return {
        "noisy_input": torch.randn(batch, 4, side, side),
        "timestep": torch.full((batch,), 500.0),
        "class_labels": torch.zeros(batch, dtype=torch.int64),
    }


def _text_inputs(channels: int, tokens: int, width: int) -> Inputs:
    def inputs(batch: int, side: int) -> dict[str, Any]:
        return {
            "latents": torch.randn(batch, channels, side, side),
            "times": torch.full((batch,), 0.5),
            "text": torch.randn(batch, tokens, width),
        }

    return inputs


def _sdxl_inputs(batch: int, side: int) -> dict[str, Any]:
    return {
        "sample": torch.randn(batch, 4, side, side),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": torch.randn(batch, 77, 2048),
        "added_cond_kwargs": {"text_embeds": torch.randn(batch, 1280), "time_ids": torch.randn(batch, 6)},
    }


def _sdxl() -> nn.Module:
    from diffusers import UNet2DConditionModel

    # diffusers is untyped, but for what it says of its classes.
    kind: Any = UNet2DConditionModel
    unet: nn.Module = kind(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return unet


class _ImageDecoder(nn.Module):
    """Stable Diffusion's autoencoder, the decoding half, from diffusers."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        kind: Any = AutoencoderKL
        whole = kind(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        self.first, self.decoder = whole.post_quant_conv, whole.decoder

    def forward(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.decoder(self.first(latents))
        return pixels


def _sana(name: str) -> Subject:
    return Subject(
        lambda: Transformer(transformer_preset(name)),
        _text_inputs(32, 300, 2304),
        Decoder(lambda: Autoencoder(autoencoder_preset("dc-ae-f32c32-sana-1.0")).decoder, 32, 32),
        steps=20,
        pixels=(512, 1024, 2048, 4096),
        patch=1,
    )


_F8 = Decoder(_ImageDecoder, 4, 8)
SUBJECTS: Mapping[str, Subject] = {
    "dit-xl/2": Subject(
        lambda: SoftmaxDiT(dit_preset("dit-xl/2")),
        _dit_inputs,
        _F8,
        50,
        (256, 512, 1024, 2048, 4096),
        patch=2,
    ),
    "pixart-alpha-like": Subject(PixArtLike, _text_inputs(4, 120, 4096), _F8, 50, (512, 1024), patch=2),
    "sdxl-unet": Subject(_sdxl, _sdxl_inputs, _F8, 50, (1024,), patch=1, package="diffusers"),
    "sana-0.6b": _sana("sana-0.6b"),
    "sana-1.6b": _sana("sana-1.6b"),
}
"""The article's table, and SANA at the sizes that it is made for."""


def measure_models(
    names: Sequence[str], pixels: Sequence[int] | None, device: torch.device, dtype: str, budget: float
) -> Iterator[Row]:
    """A row for each network and size; a step or decoding expected beyond `budget` seconds is not timed.

    Raises: InputError for an unknown name.
    """
    rate = None if budget == 0 else operations_per_second(device, DTYPES[dtype], PROBE)
    for name in names:
        subject = subject_named(name)
        if subject.package and not importlib.util.find_spec(subject.package):
            continue
        for size in subject.pixels:
            if pixels is None or size in pixels:
                counted = count(name, size)
                yield Row(counted, _timed(counted, device, dtype, budget, rate))


def subject_named(name: str) -> Subject:
    """The network of that name. Raises `InputError`, with the names there are, for another one."""
    if name not in SUBJECTS:
        raise InputError(f"unknown network {name!r}. Use one of {', '.join(SUBJECTS)}.")
    return SUBJECTS[name]


def count(name: str, pixels: int) -> Counted:
    """Parameters and operations, without allocating anything."""
    subject = subject_named(name)
    side = pixels // subject.decoder.stride
    with torch.device("meta"), torch.no_grad():
        network = subject.build()
        forward = _flops(network, **subject.inputs(1, side))
        decoder_flops = None
        if subject.decoder.build is not _ImageDecoder or importlib.util.find_spec("diffusers"):
            decoder_flops = _flops(
                subject.decoder.build(), torch.empty(1, subject.decoder.channels, side, side)
            )
    return Counted(
        name,
        pixels,
        subject.steps,
        (side // subject.patch) ** 2,
        sum(parameter.numel() for parameter in network.parameters()),
        forward,
        decoder_flops,
    )


def time_network(
    name: str, pixels: int, device: str, dtype: str, budget: float, threads: int, decodes: bool
) -> dict[str, Any]:
    """The fields of a `Timed`, measured in this process: a guided step, and the decoder if it is asked for.

    A network that does not fit the memory is answered by the reason.
    """
    subject, place, precision = subject_named(name), torch.device(device), DTYPES[dtype]
    torch.set_num_threads(threads)
    if place.type == "cpu":
        native.use("auto")  # as `lineardit generate` does
    side = pixels // subject.decoder.stride
    answer: dict[str, Any] = {}
    try:
        with torch.no_grad():
            step = _cost(subject.build, subject.inputs(GUIDED, side), place, precision, budget)
            answer |= {"step_seconds": step[0], "step_peak": step[1]}
            if decodes:
                latents = {"": torch.randn(1, subject.decoder.channels, side, side)}
                seconds, peak = _cost(subject.decoder.build, latents, place, precision, budget)
                answer |= {"decode_seconds": seconds, "decode_peak": peak}
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        answer["left_out"] = f"{'decoding' if 'step_seconds' in answer else 'a step'} does not fit the memory"
    return answer


def _timed(counted: Counted, device: torch.device, dtype: str, budget: float, rate: float | None) -> Timed:
    if rate is None:
        return Timed(left_out="counted only")
    weights = counted.parameters * DTYPES[dtype].itemsize
    free = available_memory(device) * MEMORY_SHARE
    if weights > free:
        return Timed(left_out=f"weights of {weights / 1e9:.1f} GB, free are {free / 1e9:.1f} GB")
    expected = GUIDED * counted.forward_flops / rate
    if expected > budget:
        return Timed(left_out=f"a step would take {expected:,.0f} s, over {budget:g} s")
    decoding = None if counted.decoder_flops is None else counted.decoder_flops / rate
    decodes = decoding is not None and decoding <= budget
    reason = ""
    if decoding is None:
        reason = "decoder: diffusers is not installed"
    elif not decodes:
        reason = f"decoding would take {decoding:,.0f} s, over {budget:g} s"
    arguments = [counted.name, counted.pixels, str(device), dtype, budget, torch.get_num_threads(), decodes]
    try:
        fields = answer_of(_CHILD, arguments)
    except LineardiTError as error:
        if "exit code -9" not in str(error):
            raise
        fields = {"left_out": "stopped by the system, which had no more memory"}
    return Timed(**{"left_out": reason} | fields)


_CHILD = """
from lineardit.bench.models import limit_memory, time_network
limit_memory(arguments[2])
print(json.dumps(time_network(*arguments)))
"""


def _cost(
    build: Callable[[], nn.Module],
    inputs: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    budget: float,
) -> tuple[float, int | None]:
    """Seconds of a forward pass, and the most memory that it and its weights took."""
    given = {key: _moved(value, device, dtype) for key, value in inputs.items()}
    positional = [given.pop("")] if "" in given else []
    with peak_memory(device) as peak:
        network = _random_network(build, device, dtype)
        network(*positional, **given)
    # That call warmed up: the ones measured now must not reset the peak that was found.
    return measure(lambda: network(*positional, **given), device, budget).seconds, peak.bytes


def _random_network(build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        network = build().to(dtype)
    network = network.to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        parameter.uniform_(-SMALL, SMALL, generator=generator)
    for buffer in network.buffers():
        buffer.fill_(1)
    return network


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _moved(each, device, dtype) for key, each in value.items()}
    return value.to(device, dtype if value.is_floating_point() else None)


def _flops(network: nn.Module, *inputs: Tensor, **named: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        network(*inputs, **named)
    return int(counter.get_total_flops())


def limit_memory(device: str) -> None:
    """Let allocations of this process fail, instead of filling the machine, where the system can do that."""
    if device == "cpu" and importlib.util.find_spec("resource"):
        import resource

        limit = int(available_memory(torch.device(device)) * MEMORY_SHARE)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
