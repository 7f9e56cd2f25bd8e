"""Glyphs rendered once from the font Noto Color Emoji, kept as tensors that need no font to draw with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, features
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from lineardit.data.emoji_objects import objects_by_name
from lineardit.errors import CheckpointError, InputError, MissingFontError

FONT_SIZE = 109
"""The only size at which the font holds bitmaps."""
GLYPH_SIDE = 128
"""Pixels per side of a glyph in the atlas."""
FONT_NAME = "NotoColorEmoji.ttf"
FONT_FOLDERS = (
    Path("/usr/share/fonts/truetype/noto"),
    Path("/usr/share/fonts/noto"),
    Path("/usr/share/fonts/google-noto-color-emoji-fonts"),
    Path("/usr/local/share/fonts"),
    Path.home() / ".local/share/fonts",
    Path.home() / ".fonts",
)


def find_font(folders: Sequence[Path] = FONT_FOLDERS) -> Path:
    """The font's file on this machine.

    Raises: MissingFontError with the line that installs it.
    """
    for folder in folders:
        if (folder / FONT_NAME).is_file():
            return folder / FONT_NAME
    raise MissingFontError(
        f"{FONT_NAME} is in none of {', '.join(map(str, folders))}; drawing emoji scenes needs it. "
        "Install it with: apt-get install fonts-noto-color-emoji"
    )


class Atlas:
    """Square glyphs, premultiplied by their alpha, by the object's name.

    Each is cropped to what is visible and centred, so that an object's size is what is seen of it.
    """

    def __init__(self, names: Sequence[str], glyphs: UInt8[Tensor, "k 4 s s"]) -> None:
        if len(names) != len(glyphs) or len(set(names)) != len(names):
            raise InputError(
                f"{len(names)} names for {len(glyphs)} glyphs: each glyph needs a name of its own."
            )
        self.names = tuple(names)
        self.glyphs = glyphs
        self.index = {name: position for position, name in enumerate(self.names)}

    @classmethod
    def from_font(cls, names: Sequence[str], path: Path | None = None) -> "Atlas":
        """Render these objects of the curated list.

        Raises: MissingFontError where neither `path` nor the usual folders hold the font; InputError for a
        name that is not on the list.
        """
        font = _open_font(path)
        known = objects_by_name()
        unknown = [name for name in names if name not in known]
        if unknown:
            some = ", ".join(list(known)[:5])
            raise InputError(f"{unknown[0]!r} is no object of the curated list, such as {some}.")
        return cls(names, torch.stack([_render(font, known[name].glyph) for name in names]))

    @classmethod
    def load(cls, path: Path) -> "Atlas":
        """Read what `save` wrote. Raises: CheckpointError for anything else."""
        try:
            with safe_open(path, framework="pt") as file:
                names = (file.metadata() or {}).get("names", "")
                glyphs = file.get_tensor("glyphs")
            if glyphs.dtype != torch.uint8 or glyphs.ndim != 4 or len(names.split("\n")) != len(glyphs):
                raise CheckpointError(f"{path} is a safetensors file, but no atlas of glyphs.")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is no atlas of glyphs: {error}") from None
        return cls(names.split("\n"), glyphs)

    def save(self, path: Path) -> None:
        """Write one safetensors file: the glyphs as bytes, the names in its metadata."""
        save_file({"glyphs": self.glyphs.contiguous()}, path, metadata={"names": "\n".join(self.names)})

    def resized(self, side: int) -> Float[Tensor, "k 4 side side"]:
        """All glyphs at this many pixels per side, in [0, 1], antialiased, still premultiplied."""
        full = self.glyphs.float() / 255
        small = interpolate(full, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        alpha = small[:, 3:].clamp(0, 1)
        # Bicubic weights overshoot at hard edges; no colour may be brighter than its own coverage.
        return torch.cat([torch.minimum(small[:, :3].clamp(min=0), alpha), alpha], dim=1)


def _open_font(path: Path | None) -> ImageFont.FreeTypeFont:
    path = path or find_font()
    if not path.is_file():
        raise MissingFontError(
            f"{path} does not exist; drawing emoji scenes needs {FONT_NAME}. "
            "Install it with: apt-get install fonts-noto-color-emoji"
        )
    engine = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=engine)


def _render(font: ImageFont.FreeTypeFont, glyph: str) -> Tensor:
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    # The variation selector asks for the coloured form, which is the only one that this font has.
    ImageDraw.Draw(canvas).text((8, 8), glyph.replace("\ufe0f", ""), font=font, embedded_color=True)
    box = canvas.getchannel("A").point(lambda alpha: 255 if alpha > 16 else 0).getbbox()
    if box is None:
        raise InputError(f"The font has no picture for {glyph!r}; a newer version of it may.")
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    corner = ((side - (right - left)) // 2, (side - (bottom - top)) // 2)
    square.paste(canvas.crop(box), corner)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float()
    pixels[:3] *= pixels[3:] / 255
    scaled = interpolate(pixels[None], size=(GLYPH_SIDE, GLYPH_SIDE), mode="bicubic", antialias=True)[0]
    alpha = scaled[3:].clamp(0, 255)
    return torch.cat([torch.minimum(scaled[:3].clamp(min=0), alpha), alpha]).round().to(torch.uint8)
