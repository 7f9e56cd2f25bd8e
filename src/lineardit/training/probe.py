"""A known picture and a known sentence: what a model makes of them tells whether data was prepared with it.

Latents and embeddings say nothing of where they come from. Checksums of files would tell two copies of a
model in different formats or dtypes apart, which give the same latents, so the outcome itself is compared.
"""

import torch
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.errors import ConfigError
from lineardit.text.embedding import TextEncoder

SENTENCE = "a red apple left of a cat on a sky blue background"
PICTURE, WORDS, EMPTY = "picture", "words", "empty"
"""Names of the probe's tensors; `empty` is what a sample sees that is shown no prompt."""
TOLERANCE = 0.1
"""Distance over length of what is compared: bfloat16 against float32 gives 0.01, another model about 1."""
SIDE = 4
"""Latents per side of the known picture."""


@torch.no_grad()
def probe(autoencoder: Autoencoder, text_encoder: TextEncoder | None = None) -> dict[str, Tensor]:
    """The latents (c h w) of the known picture, the vectors (m c) of the known sentence and of no words.

    Without a text encoder the latents alone.
    """
    weight = next(autoencoder.parameters())
    line = torch.linspace(-1, 1, SIDE * autoencoder.config.stride)
    y, x = torch.meshgrid(line, line, indexing="ij")
    picture = torch.stack([x, torch.sin(9 * y), torch.cos(5 * (x + y))])[None].to(weight)
    found = {PICTURE: autoencoder.encode(picture)[0]}
    if text_encoder is not None:
        words, no_words = text_encoder.encode([SENTENCE]), text_encoder.encode_negative([""])
        found[WORDS] = words.embeddings[0][words.mask[0]]
        found[EMPTY] = no_words.embeddings[0][no_words.mask[0]]
    return {name: tensor.float().cpu().contiguous() for name, tensor in found.items()}


def check_same(here: dict[str, Tensor], there: dict[str, Tensor], model: str, data: str) -> None:
    """Compare the probe of a model with that of prepared data. One without words goes with any.

    Raises:
        ConfigError: they differ; says whether the autoencoder or the text encoder is another one.
    """
    for names, part in (((PICTURE,), "autoencoder"), ((WORDS, EMPTY), "text encoder")):
        if part == "text encoder" and not (WORDS in here and WORDS in there):
            continue
        if not all(_close(here.get(name), there.get(name)) for name in names):
            raise ConfigError(
                f"{data} was prepared with another {part} than that of {model}. "
                f"Prepare the pictures again with --model {model}, or train the model they were prepared for."
            )


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.shape != b.shape:
        return False
    return bool((a - b).norm() <= TOLERANCE * b.norm())
