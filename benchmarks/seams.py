"""What a decode in parts changes: blended tiles, as diffusers has them, beside exact bands of rows.

    python benchmarks/seams.py

writes benchmarks/results/seams.md and docs/pictures/seams.png. A scene of emoji of 1024 x 1024 pixels is
encoded by the bundled autoencoder and decoded with the same weights: whole, by diffusers in tiles, by this
package in bands. Differences are those to the own decode of the whole, of 255.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from lineardit.autoencoder.bands import decode_in_bands
from lineardit.autoencoder.model import Autoencoder
from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table
from lineardit.config.models import AutoencoderConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.interop.bundled import bundled_folder
from lineardit.interop.diffusers import to_diffusers_autoencoder
from lineardit.interop.diffusers_config import autoencoder_config_to_diffusers
from lineardit.interop.native import read_model

ROOT = Path(__file__).parents[1]
SIDE, SEED = 1024, 5
TILES = ((512, 448), (256, 192))
"""Sides of tiles and steps between them; the first are diffusers' own."""
ROWS = (16, 1)
LOUDER = 32
"""Differences are shown so many times as large."""


class Change(NamedTuple):
    """What decoding in parts changed."""

    how: str
    difference: Tensor
    """(3 H W), of 255, not negative."""


def bundled() -> tuple[Autoencoder, Any]:
    """The autoencoder here and in diffusers."""
    from diffusers import AutoencoderDC

    component = read_model(bundled_folder()).components["autoencoder"]
    config = component.config
    assert isinstance(config, AutoencoderConfig)
    ours = Autoencoder(config)
    ours.load_state_dict(component.tensors)
    # It is given raw latents: its format has one scale for all channels.
    plain = config.model_copy(update={"latent_scale": (1.0,), "latent_shift": (0.0,)})
    options = autoencoder_config_to_diffusers(plain)
    kind: Any = AutoencoderDC
    theirs = kind(**{name: value for name, value in options.items() if name != "_class_name"})
    theirs.load_state_dict(to_diffusers_autoencoder(plain, component.tensors))
    return ours.eval(), theirs.eval()


@torch.no_grad()
def changes(picture: Tensor) -> tuple[Tensor, list[Change]]:
    """The whole decode (3 H W), and what each way in parts made different."""
    ours, theirs = bundled()
    latents = ours.encode(picture)
    raw = latents / ours.scale + ours.shift
    whole, their_whole = ours.decode(latents), theirs.decode(raw).sample
    if (apart := float((whole - their_whole).abs().max())) > 1e-3:
        raise SystemExit(f"the two packages decode {apart:.1e} apart: nothing is compared")
    found = []
    for side, step in TILES:
        theirs.enable_tiling(side, side, step, step)
        tiled = theirs.decode(raw).sample
        found.append(
            Change(f"diffusers, tiles of {side}, {side - step} of them blended", tiled - their_whole)
        )
    for rows in ROWS:
        pixels = rows * ours.config.stride
        banded = decode_in_bands(ours, latents, rows)
        found.append(Change(f"lineardit, bands of {pixels} rows", banded - whole))
    return whole[0], [Change(how, difference[0].abs() * 127.5) for how, difference in found]


def shown(whole: Tensor, found: list[Change]) -> Image.Image:
    """The picture, the worst of diffusers' differences with its own tiles, and ours, side by side."""
    own, ours = found[0].difference, found[len(TILES)].difference
    parts = [(whole * 127.5 + 127.5), own * LOUDER, ours * LOUDER]
    row = torch.cat([part.clamp(0, 255) for part in parts], dim=2).round().to(torch.uint8)
    picture = Image.fromarray(row.permute(1, 2, 0).numpy())
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)


def page(found: list[Change]) -> str:
    """The table."""
    rows = [
        [
            each.how,
            f"{float(each.difference.max()):.3g}",
            f"{float(each.difference.mean()):.3g}",
            f"{float((each.difference.amax(0) >= 1).float().mean()):.1%}",
        ]
        for each in found
    ]
    header = ["decoded", "largest difference, of 255", "mean", "pixels a level apart and more"]
    return (
        "# What decoding in parts changes\n\n"
        f"`python benchmarks/seams.py`; {stamp_line(hardware_stamp())}; float32.\n\n"
        f"A scene of {SIDE} x {SIDE} pixels through the bundled autoencoder, with the same weights in both "
        f"packages. Differences are those to the same package's decode of the whole.\n\n"
        f"{markdown_table(header, rows)}\n\n"
        f"![the picture, diffusers' tiles and our bands, differences times {LOUDER}]"
        "(../../docs/pictures/seams.png)\n"
    )


def main() -> None:
    """Decode, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args()
    scenes = EmojiScenes(SceneConfig(), SEED, "held_out", phrasing="train")
    picture = scenes.draw([scenes.scene(0)], size=SIDE)
    whole, found = changes(picture)
    text = page(found)
    (options.results / "seams.md").write_text(text, "utf-8")
    shown(whole, found).save(options.pictures / "seams.png", optimize=True)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
