"""Between tensors of pixels and picture files."""

import math

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lineardit.data.picture_files import in_eight_bits


def to_picture(pixels: Float[Tensor, "3 H W"]) -> Image.Image:
    """Pixels in [-1, 1] (clamped) as an 8-bit RGB picture, rounded to nearest."""
    levels = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.movedim(0, -1).cpu().numpy()))


def to_pixels(picture: Image.Image) -> Float[Tensor, "3 H W"]:
    """A picture as float32 pixels in [-1, 1]."""
    levels = torch.from_numpy(np.array(in_eight_bits(picture).convert("RGB")))
    return levels.movedim(-1, 0).float() / 127.5 - 1


def contact_sheet(
    images: Float[Tensor, "b 3 H W"], *, columns: int | None = None, gap: int = 2
) -> Image.Image:
    """All pictures in a grid, as square as it gets, on white."""
    count, _, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(to_picture(image), (column * (width + gap), row * (height + gap)))
    return sheet
