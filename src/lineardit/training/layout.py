"""A second thing that the transformer learns from drawn scenes: which object each of its tokens shows.

REPA (arXiv:2410.06940) brings a diffusion transformer's inner tokens near the features of a pre-trained image
encoder. Drawn scenes come with their truth, so here a linear head names the object at every token. Where the
latents are nearly noise only the prompt can tell, and so words and places are learned together, long before
the velocity would teach them. The head is thrown away.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from lineardit.data.scene import Scene
from lineardit.diffusion.paths import Times
from lineardit.transformer.denoiser import Denoiser

READ_AT = 0.75
"""Share of the blocks after which the tokens are read; the others make a picture of what was found."""
NOTHING = 0
"""Class of a token that shows no object; object k of the scenes' names has class k + 1."""


class LayoutReader(nn.Module):
    """The transformer that is kept and the head that is not."""

    def __init__(self, transformer: Denoiser, objects: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = nn.Linear(transformer.config.width, objects + 1)
        self.after = max(0, round(READ_AT * transformer.config.depth) - 1)

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        times: Times,
        text: Float[Tensor, "b m t"],
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b n classes"]]:
        """What the transformer predicts, and the logits of what each token shows."""
        read: list[Tensor] = []

        def listen(module: nn.Module, inputs: object, tokens: Tensor) -> None:
            read.append(self.head(functional.layer_norm(tokens, tokens.shape[-1:])))

        handle = self.transformer.blocks[self.after].register_forward_hook(listen)
        try:
            predicted = self.transformer(latents, times, text, mask)
        finally:
            handle.remove()
        return predicted, read[0]


def token_objects(
    scenes: Sequence[Scene], names: Sequence[str], height: int, width: int
) -> Integer[Tensor, "b n"]:
    """The class of what covers each token's centre in pictures of `height` x `width` tokens (square scenes).

    Raises: KeyError where a scene shows an object that is not among `names`.
    """
    number = {name: position + 1 for position, name in enumerate(names)}
    rows, columns = (torch.arange(count).add(0.5) / count for count in (height, width))
    classes = torch.full((len(scenes), height, width), NOTHING, dtype=torch.uint8)
    for scene, of_scene in zip(scenes, classes, strict=True):
        for each in scene.objects:
            down = (rows - each.y).abs() <= each.side / 2
            across = (columns - each.x).abs() <= each.side / 2
            of_scene[down[:, None] & across] = number[each.name]
    return classes.flatten(1)


def objects_share(classes: Integer[Tensor, "b n"]) -> Float[Tensor, ""]:
    """The share of a batch's tokens that show an object."""
    return (classes != NOTHING).float().mean().clamp(0.01, 0.99)


def layout_loss(
    logits: Float[Tensor, "b n classes"], classes: Integer[Tensor, "b n"], share: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Mean cross-entropy; in a batch with this `share` of objects they weigh as much as the background."""
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), classes.long().flatten(), reduction="none"
    )
    weights = torch.where(classes.flatten() != NOTHING, 0.5 / share, 0.5 / (1 - share))
    return (weights * losses).mean()
