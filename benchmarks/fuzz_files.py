"""Damages files of every kind that strangers may give us, and reads them: no crash, hang or foreign error.

    python benchmarks/fuzz_files.py --mutations 2000                of each kind
    python benchmarks/fuzz_files.py --mutations 100000              by hand, for hours

Weights, their index, PNG, JPEG, WebP, settings in a PNG, dataset rows and tars. A mutation sets, drops or
repeats a few bytes, writes numbers of an extreme size, or cuts the file. It is read, or refused by an error
of ours, within 2 s. Each kind has a process of its own, so that a crash counts. `--record` keeps the table
in docs/reliability.md.
"""

import argparse
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from record import report

LONGEST = 2.0
"""Seconds of the processor that reading one file may take."""
KINDS = ("weights", "index", "png", "jpeg", "webp", "settings in a png", "dataset rows", "tars")
Read = Callable[[bytes], object]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A file that somebody, or a disk, has changed."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        # Half of the changes are near the start, where the headers are.
        end = len(changed) if chance.random() < 0.5 else min(len(changed), 512)
        at = chance.randrange(max(1, end))
        match chance.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                changed[at : at + 1] = bytes([changed[at] ^ (1 << chance.randrange(8))]) if changed else b""
            case 2:
                extreme = chance.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(8), b"\xff" * 8, b"9" * 12])
                changed[at : at + len(extreme)] = extreme
            case 3:
                del changed[at : at + chance.choice([1, 3, 50])]
            case 4:
                changed[at:at] = changed[at : at + chance.choice([1, 8, 200])]
            case 5:
                changed[at:] = changed[at:] if chance.random() < 0.7 else b""
    return bytes(changed)


def picture(name: str) -> bytes:
    """A small picture in one of the formats, with the settings that a PNG of ours keeps."""
    from lineardit.interop.png_text import png_text

    file, options = io.BytesIO(), {}
    if name == "PNG":
        options["pnginfo"] = png_text(
            {"prompt": "a cat", "seed": 3, "width": 40, "height": 30, "sampler": "euler"}
        )
    Image.radial_gradient("L").resize((40, 30)).convert("RGB").save(file, name, **options)
    return file.getvalue()


def tiny_model(folder: Path) -> Path:
    """A whole model of a few kilobytes, with random weights."""
    from lineardit.autoencoder.model import Autoencoder
    from lineardit.config.models import AutoencoderConfig, SceneTextConfig, TransformerConfig
    from lineardit.interop.native import Component, save_model
    from lineardit.interop.text import text_component
    from lineardit.text.scene_encoder import SceneTextEncoder
    from lineardit.text.word_pieces import build_tokenizer
    from lineardit.transformer.model import Transformer

    stages = [{"width": 8, "depth": 0}, {"width": 8, "depth": 1}]
    coder = AutoencoderConfig(latent_channels=4, encoder=stages, decoder=stages)
    network = TransformerConfig(
        latent_channels=4, patch_size=1, depth=1, width=16, head_dim=8, cross_head_dim=8, text_width=12
    )
    words = SceneTextConfig(vocabulary=160, width=12, depth=1, head_dim=6, max_tokens=8)
    text, files = text_component(SceneTextEncoder(words, build_tokenizer(["a red apple", "two dogs"], 160)))
    parts = {
        "transformer": Component("Transformer", network, Transformer(network).state_dict()),
        "autoencoder": Component("Autoencoder", coder, Autoencoder(coder).state_dict()),
        "text_encoder": text,
    }
    save_model(folder, parts, about={"sampling": {"size": 16}}, extra_files=files)
    return folder


def reader(kind: str, folder: Path) -> tuple[bytes, Read]:
    """A file of a kind as it should be, and what reads one."""
    from lineardit.data.picture_files import read_picture
    from lineardit.interop.png_text import parse_parameters, read_png_text

    def replacing(file: Path, then: Callable[[], object]) -> tuple[bytes, Read]:
        def read(content: bytes) -> object:
            file.write_bytes(content)
            return then()

        return file.read_bytes(), read

    if kind in ("weights", "index"):
        from lineardit.pipeline import Pipeline

        model = tiny_model(folder / "model")
        file = model / ("transformer.safetensors" if kind == "weights" else "lineardit.json")
        return replacing(file, lambda: Pipeline.from_pretrained(model, device="cpu"))
    if kind in ("png", "jpeg", "webp"):
        return picture(kind.upper()), lambda content: read_picture(content, 10_000_000)
    if kind == "settings in a png":
        return picture("PNG"), lambda content: parse_parameters(
            read_png_text(io.BytesIO(content)).parameters or ""
        )
    from lineardit.data.folder import FolderSource
    from lineardit.data.images import read_header
    from lineardit.data.webdataset import WebDatasetSource

    def walk(source: FolderSource | WebDatasetSource) -> int:
        for number in range(len(source)):
            file = source[number].picture
            if file is not None:
                read_header(file.read(), 10_000_000)
        return len(source)

    samples = folder / "samples"
    samples.mkdir()
    for name in ("one", "two"):
        (samples / f"{name}.png").write_bytes(picture("PNG"))
        (samples / f"{name}.txt").write_text("a cat")
    if kind == "tars":
        with tarfile.open(folder / "all.tar", "w") as tar:
            for file in sorted(samples.iterdir()):
                tar.add(file, file.name)
        return replacing(folder / "all.tar", lambda: walk(WebDatasetSource([folder / "all.tar"])))
    table = samples / "metadata.jsonl"
    rows = [{"file_name": f"{name}.png", "text": "a cat", "weights": [1, 0.5]} for name in ("one", "two")]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return replacing(table, lambda: walk(FolderSource(samples)))


def attack(kind: str, mutations: int, seed: int) -> Counter[str]:
    """Read that many damaged files of a kind."""
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        content, read = reader(kind, Path(place))
        read(content)
        for number in range(mutations):
            broken = damaged(content, random.Random(f"{seed} {kind} {number}"))
            begun = time.process_time()
            try:
                read(broken)
                counts["read"] += 1
            except Exception as error:
                if type(error).__module__.startswith("lineardit"):
                    counts["refused"] += 1
                else:
                    counts["foreign"] += 1
                    sys.stderr.write(f"{kind} {number}: {type(error).__name__}: {error}\n"[:400])
            counts["slow"] += time.process_time() - begun > LONGEST
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="keep the result for docs/reliability.md")
    options = parser.parse_args()
    if options.alone:
        (kind,) = options.kind
        sys.stdout.write(json.dumps(attack(kind, options.mutations, options.seed)))
        return 0
    rows, kept = [], True
    for kind in options.kind or KINDS:
        command = [sys.executable, __file__, "--alone", "--kind", kind, "--mutations", str(options.mutations)]
        done = subprocess.run([*command, "--seed", str(options.seed)], stdout=subprocess.PIPE, check=False)
        counts = Counter(json.loads(done.stdout)) if done.returncode == 0 else Counter(crashed=1)
        kept = kept and not any(counts[bad] for bad in ("foreign", "slow", "crashed"))
        names = ("read", "refused", "foreign", "slow", "crashed")
        rows.append([kind, *(str(counts[name]) for name in names)])
    header = ["kind", "read", "refused by an error of ours", "foreign errors", "over 2 s of CPU", "crashes"]
    return report("files", rows, kept, header, record=options.record)


if __name__ == "__main__":
    sys.exit(main())
