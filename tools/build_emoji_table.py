"""Write the emoji tables of src/lineardit/data: words from the Unicode CLDR, colours measured on the font.

    python tools/build_emoji_table.py words       emoji_words.tsv from Debian's package unicode-cldr-core
    python tools/build_emoji_table.py visibility  emoji_visibility.tsv from the font and emoji_objects.tsv

The results are committed, so neither the 230 MB package nor the font is needed to compose scenes. With
`--check` nothing is written, and the exit code says whether the committed table is what would be.
"""

import argparse
import hashlib
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import max_pool2d

from lineardit.data.backgrounds import BACKGROUNDS
from lineardit.data.emoji_atlas import FONT_SIZE, Atlas, find_font
from lineardit.data.emoji_objects import read_table

DATA = Path(__file__).parents[1] / "src" / "lineardit" / "data"
CLDR = Path("/usr/share/unicode/cldr/common")
NOTICE = (
    "# Names and keywords of pictorial emoji, extracted by tools/build_emoji_table.py from the English\n"
    "# annotations of the Unicode Common Locale Data Repository (CLDR), version 41.\n"
    "# Copyright (c) 1991-2022 Unicode, Inc. Licence Unicode-DFS-2016: emoji_words.LICENSE beside it.\n"
)

# Signs, letters, clock faces and families are emoji, but no pictures of a thing.
NOT_PICTORIAL = re.compile(
    r"(button|arrow|o’clock|-thirty|flag|keycap|family|japanese|sign$|mark$|symbol$|kiss:|couple with heart:"
    r"|input|currency|skin tone|\bhair$|^(red|white|curly|bald)$|regional indicator|\btag\b|exchange"
    r"|people holding|holding hands:|prohibited|no (entry|bicycles|smoking|littering|pedestrians|mobile)"
    r"|^(aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|pisces|ophiuchus)$"
    r"|^(plus|minus|multiply|divide|infinity|wavy dash|copyright|registered|information|circled M)$|asterisk)"
)
SKIN_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")

COLOURS = {
    "red": ("e53935", "d32f2f", "ff5252", "c62828"),
    "orange": ("fb8c00", "ff9100", "f57c00", "ff7043"),
    "yellow": ("fdd835", "ffca28", "fbc02d", "ffeb3b"),
    "green": ("43a047", "689f38", "8bc34a", "2e7d32", "9ccc65"),
    "blue": ("1e88e5", "1565c0", "42a5f5", "64b5f6", "40c4ff"),
    "light blue": ("b3e5fc", "81d4fa", "a7d8f0"),
    "purple": ("8e24aa", "ab47bc", "7e57c2", "5e35b1"),
    "pink": ("f48fb1", "f06292", "f8bbd0", "ff80ab"),
    "brown": ("6d4c41", "795548", "8d6e63", "a1603c", "5d4037"),
    "beige": ("e6c9a8", "ffcc80", "f3d9b1"),
    "grey": ("9e9e9e", "757575", "90a4ae", "bdbdbd"),
    "white": ("ffffff", "f5f5f5", "eceff1"),
    "black": ("212121", "000000", "37474f"),
}
CLOSE = 0.11
"""Distance in OKLab below which a pixel is hard to tell from the background."""
CLOSE_RGB = 0.2
"""The same in sRGB, for dark colours, which OKLab puts far apart."""
HIDDEN_SHARE = 0.5
"""An object is hidden where more than this share of its outline is that close."""


def oklab(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] (..., 3) to OKLab (Bjorn Ottosson, 2020), where distances are as people see them."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_cones = rgb.new_tensor(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = rgb.new_tensor(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return (linear @ to_cones.T).clamp(min=0) ** (1 / 3) @ to_lab.T


def visibility() -> str:
    """The dominant colour of each curated object with its share, and the backgrounds that hide it."""
    names = [row["noun"] for row in read_table("emoji_objects.tsv")]
    glyphs = Atlas.from_font(names).resized(64).double()
    palette = [(name, tuple(bytes.fromhex(each))) for name, shades in COLOURS.items() for each in shades]
    shades = oklab(torch.tensor([shade for _, shade in palette], dtype=torch.float64) / 255)
    rows = {each.name: each.colours(64).T.double() for each in BACKGROUNDS}
    lines = ["noun\tcolour\tshare\thidden_on"]
    for name, glyph in zip(names, glyphs, strict=True):
        alpha = glyph[3]
        solid = alpha > 0.5
        pixels = (glyph[:3] / alpha.clamp(min=1e-3)).permute(1, 2, 0).clamp(0, 1)
        nearest = torch.cdist(oklab(pixels[solid]), shades).argmin(1)
        counts = dict.fromkeys(COLOURS, 0.0)
        for shade in nearest.tolist():
            counts[palette[shade][0]] += 1 / len(nearest)
        colour = max(counts, key=lambda each: counts[each])
        outside = max_pool2d((~solid)[None].double(), 7, stride=1, padding=3)[0] > 0
        outside[:3] = outside[-3:] = outside[:, :3] = outside[:, -3:] = True
        outline = pixels[solid & outside]
        hidden = [each for each, colours in rows.items() if _hidden(outline, colours)]
        lines.append(f"{name}\t{colour}\t{counts[colour]:.2f}\t{', '.join(hidden)}")
    return "\n".join(lines) + "\n"


def _hidden(outline: Tensor, rows: Tensor) -> bool:
    """Wherever on a graded background the object may stand: over any quarter of its rows."""
    near = torch.cdist(oklab(outline), oklab(rows)) < CLOSE
    close = (near | (torch.cdist(outline, rows) < CLOSE_RGB)).double().mean(0)
    return bool(close.unfold(0, 16, 4).mean(1).max() > HIDDEN_SHARE)


def words() -> str:
    """Glyph, name and keywords of every pictorial emoji that the font has a picture of."""
    font = ImageFont.truetype(str(find_font()), FONT_SIZE)
    names: dict[str, str] = {}
    keywords: dict[str, str] = {}
    for folder in ("annotations", "annotationsDerived"):
        for entry in ElementTree.parse(CLDR / folder / "en.xml").iter("annotation"):
            table = names if entry.get("type") == "tts" else keywords
            table.setdefault(entry.get("cp", ""), (entry.text or "").strip())
    lines = ["glyph\tname\tkeywords"]
    pictures = {_picture(font, "\U0010fffe"), _picture(font, " ")}
    for glyph, name in names.items():
        if SKIN_TONES.search(glyph) or NOT_PICTORIAL.search(name.lower()) or not _one_glyph(font, glyph):
            continue
        picture = _picture(font, glyph)
        if picture in pictures:
            continue
        pictures.add(picture)
        others = [word.strip() for word in keywords.get(glyph, "").split("|") if word.strip() != name]
        lines.append(f"{glyph}\t{name}\t{', '.join(others)}")
    return NOTICE + "\n".join(lines) + "\n"


def _one_glyph(font: ImageFont.FreeTypeFont, glyph: str) -> bool:
    """Whether the font draws the whole sequence as one picture of its own."""
    return font.getlength(glyph) == font.getlength("\U0001f600")


def _picture(font: ImageFont.FreeTypeFont, glyph: str) -> bytes:
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), glyph, font=font, embedded_color=True)
    return hashlib.sha256(canvas.tobytes()).digest()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=["words", "visibility"])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if it would change")
    options = parser.parse_args()
    text = words() if options.table == "words" else visibility()
    path = DATA / f"emoji_{options.table}.tsv"
    if options.check:
        return int(path.read_text("utf-8") != text)
    path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
