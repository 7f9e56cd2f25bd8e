"""Whether drawing takes the memory that is told, and whether a bound on it is kept.

    python benchmarks/memory.py told                                  the bundled model
    python benchmarks/memory.py told --model f32c32 --pixels 512,1024
    python benchmarks/memory.py bound --pixels 4096 --memory 6GB      decodes with f32c32's full width

`told` asks `lineardit info` for the peak of a picture, draws it by `lineardit generate` in a process of its
own, and compares that with the most memory the system saw the process hold. f32c32 is an autoencoder of that
width with one block a stage (more are alike, and only one is in hand at a time) beside a transformer of
SANA-0.6B's width with three, with random weights. `bound` decodes random latents in one fresh process within
a bound, with random weights: memory and time are those of real ones. `--output FILE` also writes the table.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.bench.process import answer_of, command_peak
from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table
from lineardit.cli.sizes import bytes_of
from lineardit.config.models import AutoencoderConfig
from lineardit.config.presets import AUTOENCODERS, TRANSFORMERS, differing
from lineardit.interop.bundled import bundled_folder
from lineardit.interop.native import Component, read_model, save_model
from lineardit.kernels.select import DTYPES
from lineardit.transformer.model import Transformer

PROMPT = "a red apple left of a cat on a sky blue background"
PRESET = "dc-ae-f32c32-sana-1.1"
ALLOWED = 0.15

_DECODE = """
import time, torch
from lineardit.autoencoder.bands import decode_in_bands
from lineardit.autoencoder.model import Autoencoder
from lineardit.config.presets import AUTOENCODERS
from lineardit.kernels import native
from lineardit.kernels.allocator import resident_bytes, return_freed_memory
from lineardit.kernels.select import DTYPES
from lineardit.interop.bound import MemoryBound
preset, pixels, allowed, dtype, threads = arguments
if threads:
    torch.set_num_threads(threads)
native.use("auto")
return_freed_memory()
config, floats = AUTOENCODERS[preset], DTYPES[dtype]
with torch.device("meta"):
    network = Autoencoder(config).to(floats).eval()
network.to_empty(device="cpu")
torch.manual_seed(0)
with torch.no_grad():
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.normal_(std=0.02) if tensor.ndim > 1 else tensor.fill_(1.0)
side = pixels // config.stride
latents = torch.randn(1, config.latent_channels, side, side).to(floats)
bound = MemoryBound.beside_held(allowed, torch.device("cpu"))
fit = bound.decoding(config, pixels, pixels, floats)
bound.check([fit], pixels, pixels)
start = time.perf_counter()
with torch.no_grad():
    whole = network.decode(latents) if fit.rows is None else decode_in_bands(network, latents, fit.rows)
    pixels_out = whole.float().clamp_(-1, 1)
seconds = time.perf_counter() - start
print(json.dumps({"held": bound.held, "told": bound.held + fit.needed, "rows": fit.rows, "of": side,
                  "peak": resident_bytes("VmHWM"), "seconds": seconds,
                  "finite": bool(pixels_out.isfinite().all())}))
"""


def random_model(folder: Path) -> Path:
    """A model of real width and few blocks; only its memory is of interest."""
    preset = AUTOENCODERS[PRESET]
    shallow = {
        name: [stage.model_dump() | {"depth": min(stage.depth, 1)} for stage in getattr(preset, name)]
        for name in ("encoder", "decoder")
    }
    config = AutoencoderConfig(**preset.model_dump() | shallow)
    text = read_model(bundled_folder()).components["text_encoder"]
    narrow = differing(TRANSFORMERS["sana-0.6b"], depth=3, text_width=text.config.model_dump()["width"])
    autoencoder, transformer = _filled(Autoencoder(config)), _filled(Transformer(narrow))
    save_model(
        folder,
        {
            "transformer": Component("Transformer", narrow, transformer.state_dict()),
            "autoencoder": Component("Autoencoder", config, autoencoder.state_dict()),
            "text_encoder": text,
        },
        about={"sampling": {"size": 1024}},
        extra_files={"tokenizer.json": (bundled_folder() / "tokenizer.json").read_bytes()},
        dtype="bf16",
    )
    return folder


def _filled(network: nn.Module) -> nn.Module:
    """Random weights that keep numbers small."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    return network


def told(options: argparse.Namespace) -> str:
    """The table of predicted and measured peaks."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = str(bundled_folder())
        if options.model == "f32c32":
            model = str(random_model(Path(folder) / "model"))
        for pixels in map(int, options.pixels.split(",")):
            size = ["--height", str(pixels), "--width", str(pixels), "--dtype", options.dtype]
            facts = json.loads(command_peak(["info", model, *size, "--json"])[0])["memory"]
            for kept in options.kept.split(","):
                picture = str(Path(folder) / "picture.png")
                draw = ["--num-inference-steps", "1", "--keep-freed" if kept == "yes" else "--no-keep-freed"]
                words = ["generate", PROMPT, "--model", model, *size, *draw, "-o", picture, "--force"]
                _, peak = command_peak(words)
                rows.append([str(pixels), kept, *_compared(facts["together_bytes"], peak)])
                sys.stderr.write(f"{rows[-1]}\n")
    header = [
        "pixels a side",
        "freed kept",
        "told, MB",
        "measured, MB",
        "measured / told",
        "within 15 %",
    ]
    command = f"python benchmarks/memory.py told --model {options.model} --dtype {options.dtype}"
    return f"`{command} --pixels {options.pixels}`; {stamp_line(hardware_stamp())}.\n\n" + markdown_table(
        header, rows
    )


def _compared(predicted: int, measured: int) -> list[str]:
    ratio = measured / predicted
    inside = "yes" if abs(ratio - 1) <= ALLOWED else "**no**"
    return [f"{predicted / 1e6:,.0f}", f"{measured / 1e6:,.0f}", f"{ratio:.2f}", inside]


def bound(options: argparse.Namespace) -> str:
    """The table of one decode within a bound."""
    allowed, pixels = bytes_of(options.memory), int(options.pixels)
    found: dict[str, Any] = answer_of(_DECODE, [PRESET, pixels, allowed, options.dtype, options.threads])
    rows = found["rows"]
    facts = {
        "decoded": f"{pixels} x {pixels} pixels, {PRESET} at its full width, {options.dtype}",
        "bound": f"{allowed / 1e9:.2f} GB",
        "held before, weights included": f"{found['held'] / 1e9:.2f} GB",
        "rows of latents at a time": "all" if rows is None else f"{rows} of {found['of']}",
        "told": f"{found['told'] / 1e9:.2f} GB",
        "peak of the process": f"{found['peak'] / 1e9:.2f} GB",
        "bound kept": "yes" if found["peak"] <= allowed else "**no**",
        "time": f"{found['seconds']:.0f} s",
        "all pixels finite": "yes" if found["finite"] else "**no**",
    }
    command = f"python benchmarks/memory.py bound --pixels {pixels} --memory {options.memory}"
    table = markdown_table(["what", "measured"], [[name, value] for name, value in facts.items()])
    return f"`{command} --dtype {options.dtype}`; {stamp_line(hardware_stamp())}.\n\n{table}"


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["told", "bound"])
    parser.add_argument("--model", choices=["bundled", "f32c32"], default="bundled", help="told")
    parser.add_argument("--pixels", help="sides; told: 512,1024,2048 unless given, bound: 4096")
    parser.add_argument("--memory", default="6GB", help="bound")
    parser.add_argument("--kept", default="no,yes", help="told: with freed memory kept, or not, or both")
    parser.add_argument("--dtype", choices=[*DTYPES], help="told: fp32, bound: bf16 unless given")
    parser.add_argument("--threads", type=int, default=0, help="bound; 0 leaves it to torch")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.pixels is None:
        options.pixels = "512,1024,2048" if options.what == "told" else "4096"
    if options.dtype is None:
        options.dtype = "fp32" if options.what == "told" else "bf16"
    page = (told if options.what == "told" else bound)(options) + "\n"
    sys.stdout.write(page)
    if options.output is not None:
        options.output.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
