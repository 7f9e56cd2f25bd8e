"""A whole model of published size, Gemma included, drawing within less memory than its weights take.

    python benchmarks/offload.py                          SANA-0.6B at 512 pixels: without a bound, 4 GB, 2 GB
    python benchmarks/offload.py --preset sana-1.5-4.8b --pixels 1024 --memory 6GB

writes benchmarks/results/offload.md. The model is a folder of diffusers with random weights in bf16: 7 GB for
SANA-0.6B with Gemma-2 2B and f32c32, which need that room where temporary files go. Every picture is drawn by
`lineardit generate` in a process of its own, as a user would, and compared with the first one.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.bench.process import command_peak
from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table, significant
from lineardit.cli.sizes import bytes_of
from lineardit.config.presets import autoencoder_preset, transformer_preset
from lineardit.interop.export import export
from lineardit.interop.place import Network, Place
from lineardit.interop.shards import write_weights
from lineardit.interop.stored import LazyTensors, Stored
from lineardit.text.prompt import sana_instruction
from lineardit.transformer.model import Transformer

RESULT = Path(__file__).parent / "results" / "offload.md"
AUTOENCODER = "dc-ae-f32c32-sana-1.1"
PROMPT = "a red apple left of a cat on a sky blue background"


def random_numbers(network: nn.Module) -> LazyTensors:
    """Small random weights for a network on the meta device, each made when it is asked for, in bf16."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}

    def make(name: str) -> Tensor:
        if len(shapes[name]) == 1:
            return torch.ones(shapes[name], dtype=torch.bfloat16)
        fan_in = shapes[name].numel() // shapes[name][0]
        return torch.randn(shapes[name], dtype=torch.bfloat16) / fan_in**0.5

    return LazyTensors({name: Stored("BF16", tuple(shape)) for name, shape in shapes.items()}, make)


class RandomGemma:
    """Gemma-2 2B as transformers stores it, with random weights and a vocabulary of SANA's instruction."""

    class_name, tokenizer_class = "Gemma2Model", "PreTrainedTokenizerFast"

    def __init__(self) -> None:
        from transformers import Gemma2Config

        self.config = Gemma2Config(dtype="bfloat16")
        self.width = int(self.config.hidden_size)

    def write(self, text_encoder: Path, tokenizer: Path) -> None:
        """Fill two new folders."""
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import Gemma2Model, PreTrainedTokenizerFast

        text_encoder.mkdir()
        self.config.save_pretrained(text_encoder)
        with torch.device("meta"):
            model = Gemma2Model(self.config)
        write_weights(text_encoder, "model", random_numbers(model))
        splitter = pre_tokenizers.Whitespace()
        text = f"{sana_instruction()} {PROMPT}"
        words = dict.fromkeys(
            ["<pad>", "<unk>", "<bos>", *(word for word, _ in splitter.pre_tokenize_str(text))]
        )
        vocabulary = Tokenizer(
            models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
        )
        vocabulary.pre_tokenizer = splitter
        first = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
        vocabulary.post_processor = first
        PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>").save_pretrained(tokenizer)


def random_model(folder: Path, preset: str) -> int:
    """Write the model, and return the bytes of its weights."""
    torch.manual_seed(0)
    configs = transformer_preset(preset), autoencoder_preset(AUTOENCODER)
    with torch.device("meta"):
        networks: Mapping[str, Any] = {
            "transformer": Transformer(configs[0]),
            "autoencoder": Autoencoder(configs[1]),
        }
    parts = {
        name: Network(type(each).__name__, each.config, random_numbers(each), preset)
        for name, each in networks.items()
    }
    place = Place(folder, "native", parts, RandomGemma(), {"shift": 3.0, "size": 1024, "sampler": "dpm++"})
    export(place, folder, "diffusers")
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def drawn(model: Path, pixels: int, memory: str, steps: int, picture: Path) -> tuple[float, int]:
    """Seconds and most bytes of a process that draws one picture."""
    words = ["generate", PROMPT, "--model", str(model), "--dtype", "bf16", "-o", str(picture), "--force"]
    words += ["--height", str(pixels), "--width", str(pixels), "--num-inference-steps", str(steps)]
    words += ["--no-keep-freed"] if memory == "none" else ["--memory", memory]
    start = time.perf_counter()
    _, peak = command_peak(words)
    return time.perf_counter() - start, peak


def main() -> None:
    """Write the model, draw, compare, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="sana-0.6b")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--memory", default="none,4GB,2GB", help="bounds, the first one to compare with")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        model, picture = Path(folder) / "model", Path(folder) / "picture.png"
        weights = random_model(model, options.preset)
        for memory in options.memory.split(","):
            seconds, peak = drawn(model, options.pixels, memory, options.steps, picture)
            pixels = np.asarray(Image.open(picture)).astype(int)
            first = pixels if first is None else first
            kept = "-" if memory == "none" else "yes" if peak <= bytes_of(memory) else "**no**"
            apart = f"{np.abs(pixels - first).max()}, {np.abs(pixels - first).mean():.2f}"
            rows.append([memory, f"{peak / 1e9:.2f}", kept, significant(seconds), apart])
            sys.stderr.write(f"{rows[-1]}\n")
    header = ["--memory", "peak, GB", "bound kept", "seconds, loading included", "levels apart: most, mean"]
    command = f"python benchmarks/offload.py --preset {options.preset} --pixels {options.pixels} "
    command += f"--steps {options.steps} --memory {options.memory}"
    page = (
        "# Within less memory than the weights take\n\n"
        f"`{command}`; {stamp_line(hardware_stamp())}; bf16, random weights.\n\n"
        f"The weights of {options.preset}, Gemma-2 2B and {AUTOENCODER} take {weights / 1e9:.2f} GB. Peak is "
        "the most that the process held; without a bound Gemma's file is mapped and counts as far as it was "
        f"read. Levels are of 255, against the first picture.\n\n{markdown_table(header, rows)}\n"
    )
    options.output.write_text(page, "utf-8")
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
