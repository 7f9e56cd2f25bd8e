"""SANA's transformer and decoder beside those of diffusers, with the same weights, each in its own process.

A speed counts only once the outputs were compared. Every contender reads the same weights and inputs, runs
the same sizes, and writes what it computed; the first one is what the others are held against.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lineardit.autoencoder.bands import decode_in_bands
from lineardit.autoencoder.model import Autoencoder
from lineardit.bench.process import answer_of
from lineardit.config.models import TransformerConfig
from lineardit.config.presets import autoencoder_preset, transformer_preset
from lineardit.errors import InputError, LineardiTError, MemoryLimitError
from lineardit.interop.assembly import assemble_autoencoder, assemble_transformer
from lineardit.interop.bound import Steps
from lineardit.interop.diffusers import from_diffusers_autoencoder, from_diffusers_transformer
from lineardit.interop.diffusers_config import (
    autoencoder_config_to_diffusers,
    transformer_config_to_diffusers,
)
from lineardit.interop.place import Network, Place
from lineardit.interop.room import Room
from lineardit.interop.stored import open_tensors
from lineardit.kernels import native
from lineardit.kernels.allocator import (
    ask_for_large_pages,
    keep_freed_memory,
    resident_bytes,
    return_freed_memory,
)
from lineardit.kernels.select import DTYPES
from lineardit.nn.int8 import quantize_blocks
from lineardit.nn.offload import offloaded
from lineardit.nn.packed import pack_blocks
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
LONG = 6
LARGE = 2048
"""Side of the matrix product whose rate is the limit."""
CPU = torch.device("cpu")


class Contender(NamedTuple):
    """Who computes, and how."""

    package: str
    """diffusers or lineardit."""
    compiled: bool = False
    kept: bool = False
    """Freed memory is kept (`kernels.allocator`); otherwise that is left to the system."""
    passes: str = "torch"
    int8: bool = False
    """The transformer's layers are int8 (`nn.int8`)."""
    share: float = 0.0
    """Of the most that the first contender held: what is allowed. 0 sets no bound."""
    most: int = 0
    """Bytes that are allowed, where that is not a share. 0 sets no bound."""

    @property
    def is_bounded(self) -> bool:
        """Whether its weights wait in their files, and what it computes in bands."""
        return bool(self.share or self.most)


SHARE = 0.6
CONTENDERS = {
    "diffusers": Contender("diffusers"),
    "diffusers, memory kept": Contender("diffusers", kept=True),
    "diffusers compiled, memory kept": Contender("diffusers", compiled=True, kept=True),
    "lineardit, torch": Contender("lineardit", kept=True),
    "lineardit, native": Contender("lineardit", kept=True, passes="native"),
    "lineardit, int8": Contender("lineardit", kept=True, passes="native", int8=True),
    f"lineardit, {SHARE:.0%} of the memory": Contender("lineardit", passes="native", share=SHARE),
    f"lineardit, int8, {SHARE:.0%} of the memory": Contender(
        "lineardit", passes="native", int8=True, share=SHARE
    ),
}


class Measured(NamedTuple):
    """One contender at one size."""

    contender: str
    part: str
    pixels: int
    seconds: float
    """Median."""
    calls: int
    """Of which this is the median; 0 where the first call was so long that it alone was made."""
    first: float
    """Seconds of the first call: warming up and compiling."""
    once: float
    """Seconds that are spent once a picture, in reading the prompt and weights that wait in their files."""
    held: int | None
    """Bytes that the process held before: the weights of all parts, and the libraries."""
    peak: int | None
    """Bytes that it held at most."""
    apart: float
    """From the first contender's output, over its deviation."""


class LeftOut(NamedTuple):
    """One contender at one size that could not be measured."""

    contender: str
    part: str
    pixels: int
    reason: str


def measure_peers(
    names: Sequence[str],
    parts: Sequence[str],
    pixels: Sequence[int],
    dtype: str,
    budget: float,
    threads: int,
    more: Mapping[str, Contender] | None = None,
) -> Iterator[Measured | LeftOut]:
    """Rows, size by size; each measurement takes about `budget` seconds, three calls at least.

    A call of more than `LONG` budgets is made once. One that does not fit the memory is left out. `names` are
    those of `CONTENDERS`, and of some `more`.

    Raises:
        InputError: an unknown contender or dtype.
        LineardiTError: an output is not that of the first contender.
    """
    known = CONTENDERS | dict(more or {})
    for name in names:
        if name not in known:
            raise InputError(f"unknown contender {name!r}. Use some of {'; '.join(CONTENDERS)}.")
    if dtype not in NEAR:
        raise InputError(f"dtype={dtype} is not compared. Use one of {', '.join(NEAR)}.")
    with tempfile.TemporaryDirectory() as folder:
        answer_of(_WRITES, [folder, dtype])
        for size in pixels:
            chosen = {name: known[name] for name in names}
            yield from _at(size, chosen, parts, dtype, [folder, budget, threads])


def _at(
    size: int, contenders: Mapping[str, Contender], parts: Sequence[str], dtype: str, rest: Sequence[Any]
) -> Iterator[Measured | LeftOut]:
    """All contenders at one size."""
    wanted: dict[str, Tensor] = {}
    most, names = 0, [*contenders]
    for name, own in contenders.items():
        allowed = own.most or int(own.share * most)
        if own.is_bounded and not allowed:
            yield from (LeftOut(name, part, size, f"{names[0]} was not measured") for part in parts)
            continue
        answers = answer_of(_MEASURES, [list(own), list(parts), size, dtype, allowed, *rest])
        outputs = load_file(_outputs(rest[0]))
        if name == names[0]:
            wanted, most = outputs, max((answer.get("peak") or 0 for answer in answers.values()), default=0)
        for part, answer in answers.items():
            if "reason" in answer:
                yield LeftOut(name, part, size, **answer)
                continue
            off = _apart(outputs[part], wanted[part]) if part in wanted else 0.0
            near = NEAR["bf16" if own.int8 else dtype]
            if not off <= near:
                raise LineardiTError(
                    f"{name} is {off:.1e} from {names[0]} in {part} {size} pixels, more than {near:g}: "
                    "no speed is told."
                )
            yield Measured(name, part, size, **answer, apart=off)


def operations(part: str, size: int) -> int:
    """What a call has to compute, counted: for tokens that are there, without what is done once a picture."""
    side = size // STRIDE
    with torch.device("meta"), torch.no_grad(), native.using("torch"):
        if part == "decode":
            whole = autoencoder_preset(AUTOENCODER)
            decoder, latents = Autoencoder(whole).decoder, torch.empty(1, whole.latent_channels, side, side)
            with FlopCounterMode(display=False) as counter:
                decoder(latents)
        else:
            config = transformer_preset(TRANSFORMER)
            transformer = Transformer(config)
            read = transformer.read(torch.empty(2, sum(TOLD) // 2, config.text_width))
            with FlopCounterMode(display=False) as counter:
                transformer(torch.empty(1, config.latent_channels, side, side), torch.empty(1), read)
    return int(counter.get_total_flops())


_WRITES = """
from lineardit.bench.peers import write_weights
print(json.dumps(write_weights(*arguments)))
"""
_MEASURES = """
from lineardit.bench.models import limit_memory
from lineardit.bench.peers import run_contender
limit_memory("cpu")
print(json.dumps(run_contender(*arguments)))
"""


def write_weights(folder: str, dtype: str) -> None:
    """The same random weights for both packages, each in its own names."""
    for part, peer in _PEERS.items():
        kind, options, convert = peer()
        torch.manual_seed(SEED)
        network = kind(**options).to(DTYPES[dtype])
        theirs = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        save_file(theirs, _weights(folder, part, "diffusers"))
        ours = {name: tensor.contiguous() for name, tensor in convert(theirs).items()}
        save_file(ours, _weights(folder, part, "lineardit"))


def run_contender(
    contender: Sequence[Any],
    parts: Sequence[str],
    size: int,
    dtype: str,
    allowed: int,
    folder: str,
    budget: float,
    threads: int,
) -> dict[str, dict[str, Any]]:
    """Measure in this process, write the outputs into `folder`, and return the fields of `Measured`.

    All networks are loaded before anything is measured, as in a process that draws pictures.
    """
    own = Contender(*contender)
    if threads:
        torch.set_num_threads(threads)
    answers: dict[str, dict[str, Any]] = {}
    outputs: dict[str, Tensor] = {}
    if own.kept:
        ask_for_large_pages()
    with torch.no_grad():
        if own.package == "lineardit":
            return_freed_memory()  # what loading took and gave back
        native.use(own.passes)
        works = (_diffusers if own.package == "diffusers" else _lineardit)(own, folder, dtype)
        if own.kept:
            keep_freed_memory()
        for part in parts:
            try:
                answers[part], outputs[part] = _cost(works[part], size, allowed, budget, own.compiled)
            except (RuntimeError, MemoryError, MemoryLimitError) as error:
                if "memory" not in str(error) and not isinstance(error, MemoryError):
                    raise
                own_words = isinstance(error, MemoryLimitError)
                answers[part] = {"reason": str(error) if own_words else "does not fit the memory"}
    save_file(outputs, _outputs(folder))
    return answers


Work = Callable[[int, int], Callable[[], Tensor]]
"""(pixels a side, bytes allowed or 0) -> a call. What is done once a picture is done before that."""


def _cost(
    work: Work, size: int, allowed: int, budget: float, compiles: bool
) -> tuple[dict[str, Any], Tensor]:
    """The fields of `Measured`, and what was computed; the first call of some compiles."""
    _forget_peak()
    begin = time.perf_counter()
    call = work(size, allowed)
    once = time.perf_counter() - begin
    held = resident_bytes()
    seconds: list[float] = []
    while len(seconds) < 4 or (sum(seconds[1:]) < budget and len(seconds) < 40):
        begin = time.perf_counter()
        out = call()
        seconds.append(time.perf_counter() - begin)
        if seconds[-1] > LONG * budget and len(seconds) > compiles:
            break
    answer = {
        "seconds": statistics.median(seconds[1:] or seconds),
        "calls": len(seconds) - 1,
        "first": seconds[0],
        "once": once,
        "held": held,
        "peak": resident_bytes("VmHWM"),
    }
    return answer, out.float().contiguous()


def _diffusers(own: Contender, folder: str, dtype: str) -> dict[str, Work]:
    """Its transformer and its decoder."""
    parts = {part: _loaded(*_PEERS[part]()[:2], _weights(folder, part, own.package)) for part in PARTS}
    transformer, decoder = parts["step"], parts["decode"].decoder
    if own.compiled:
        transformer, decoder = torch.compile(transformer), torch.compile(decoder)
    config = transformer_preset(TRANSFORMER)
    text, mask, times = _prompts(config, dtype)

    def step(size: int, _: int) -> Callable[[], Tensor]:
        twice = _latents(config.latent_channels, size, dtype).repeat(2, 1, 1, 1)
        given = {"timestep": times.repeat(2) * config.time_scale, "encoder_attention_mask": mask.to(text)}
        return lambda: transformer(twice, text, **given, return_dict=False)[0]

    def decode(size: int, _: int) -> Callable[[], Tensor]:
        latents = _latents(config.latent_channels, size, dtype)
        return lambda: decoder(latents)

    return {"step": step, "decode": decode}


def _lineardit(own: Contender, folder: str, dtype: str) -> dict[str, Work]:
    """Ours, with the memory shared as a pipeline shares it."""
    config, other = transformer_preset(TRANSFORMER), autoencoder_preset(AUTOENCODER)
    files = {part: _weights(folder, part, own.package) for part in PARTS}
    tensors = {part: open_tensors(Path(file)) for part, file in files.items()}
    networks = {
        "transformer": Network("Transformer", config, tensors["step"], files["step"]),
        "autoencoder": Network("Autoencoder", other, tensors["decode"], files["decode"]),
    }
    place = Place(Path(folder), "native", networks)
    transformer = assemble_transformer(place, dtype, offloads=own.is_bounded)
    autoencoder = assemble_autoencoder(place, dtype, offloads=own.is_bounded)
    if own.int8:
        quantize_blocks(transformer)
    elif own.passes == "native":
        pack_blocks(transformer)
    parts: dict[str, nn.Module] = {"transformer": transformer, "autoencoder": autoencoder}
    room = Room(lambda: parts)
    text, mask, times = _prompts(config, dtype)

    def step(size: int, allowed: int) -> Callable[[], Tensor]:
        latents = _latents(config.latent_channels, size, dtype)
        if allowed:
            room.limit(allowed)
        steps = Steps(size, size, len(text))
        rows = room.rows_to_denoise(steps)
        read = transformer.read(text, mask, folds=room.folds_prompts(steps))
        return lambda: transformer(latents, times, read, rows=rows)

    def decode(size: int, allowed: int) -> Callable[[], Tensor]:
        latents = _latents(config.latent_channels, size, dtype) * other.latent_scale[0]
        if allowed:
            room.limit(allowed)

        def call() -> Tensor:
            for part in offloaded(autoencoder.decoder):
                part.forget()  # every picture reads it anew: the next one's steps need its room
            rows = room.rows_to_decode(size, size)
            return (
                autoencoder.decode(latents) if rows is None else decode_in_bands(autoencoder, latents, rows)
            )

        return call

    return {"step": step, "decode": decode}


def _prompts(config: TransformerConfig, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of tokens without and with a prompt, which of them are there, and the time of a step."""
    text = _randn(2, TOKENS, config.text_width).to(DTYPES[dtype])
    return text, torch.arange(TOKENS) < torch.tensor(TOLD)[:, None], torch.full((1,), 0.6)


class _Peer(NamedTuple):
    """A network of diffusers, and its weights in our names."""

    kind: Any
    options: Mapping[str, Any]
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def _peer_transformer() -> _Peer:
    from diffusers import SanaTransformer2DModel

    config = transformer_preset(TRANSFORMER)
    options = _options(transformer_config_to_diffusers(config))
    return _Peer(SanaTransformer2DModel, options, lambda state: from_diffusers_transformer(config, state))


def _peer_autoencoder() -> _Peer:
    from diffusers import AutoencoderDC

    config = autoencoder_preset(AUTOENCODER)
    options = _options(autoencoder_config_to_diffusers(config))
    return _Peer(AutoencoderDC, options, lambda state: from_diffusers_autoencoder(config, state))


_PEERS: Mapping[str, Callable[[], _Peer]] = {"step": _peer_transformer, "decode": _peer_autoencoder}


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_class_name"}


def _loaded(kind: Any, options: Mapping[str, Any], place: str) -> Any:
    with torch.device("meta"):
        network = kind(**options)
    # Copies: a file that is mapped would count as held.
    network.load_state_dict({name: each.clone() for name, each in load_file(place).items()}, assign=True)
    return network.eval()


def _weights(folder: str, part: str, package: str) -> str:
    return str(Path(folder) / f"{part}-{package}.safetensors")


def _outputs(folder: str) -> str:
    return str(Path(folder) / "outputs.safetensors")


def _latents(channels: int, size: int, dtype: str) -> Tensor:
    return _randn(1, channels, size // STRIDE, size // STRIDE).to(DTYPES[dtype])


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.std())


def _forget_peak() -> None:
    """From here on the highest memory is counted anew, where Linux lets a process do that."""
    place = Path("/proc/self/clear_refs")
    if place.exists():
        place.write_text("5", "ascii")
