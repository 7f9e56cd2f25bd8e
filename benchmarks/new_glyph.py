"""One new object from 8 pictures: draw them, and measure what a LoRA trained on them draws.

`draw` also writes sentences about other objects, without pictures: what the model makes of them before it
learns is what it has to go on making of them.

    python benchmarks/new_glyph.py draw runs/new-glyph/pictures
    lineardit prepare runs/new-glyph/pictures -o runs/new-glyph/prepared
    lineardit train recipes/new-glyph.toml
    python benchmarks/new_glyph.py compare runs/new-glyph/model -o runs/new-glyph/compared.json
    lineardit evaluate scenes --count 400 -o runs/new-glyph/without
    lineardit evaluate scenes --count 400 -o runs/new-glyph/with --lora runs/new-glyph/model

The object is on the curated list, beyond the 104 that the bundled model was trained on. The two scores of
scenes tell whether the others were forgotten.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_objects import emoji_objects
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.pictures import contact_sheet, to_picture
from lineardit.pipeline import Pipeline

TAUGHT = 8
ASKED = 32
KEPT = 512
"""Sentences of training scenes, in which the object does not occur, that must not be forgotten."""
SIZE = 128


def single_scenes(name: str, seed: int, count: int) -> tuple[Tensor, list[list[str]]]:
    """Scenes that show this object alone: pixels and three captions of each."""
    position = [each.name for each in emoji_objects()].index(name)
    scenes = EmojiScenes(SceneConfig(size=SIZE, objects=position + 1, max_objects=1), seed)
    found: list[int] = []
    index = 0
    while len(found) < count:
        scene = scenes.scene(index)
        if [each.name for each in scene.objects] == [name]:
            found.append(index)
        index += 1
    drawn = [scenes.scene(number) for number in found]
    captions = [scenes.captions(scene, number, 3) for scene, number in zip(drawn, found, strict=True)]
    return scenes.draw(drawn), captions


def draw(name: str, folder: Path, seed: int) -> None:
    """Write the pictures, each with a JSON of its captions."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels, captions = single_scenes(name, seed, TAUGHT)
    for number, (picture, phrases) in enumerate(zip(pixels, captions, strict=True)):
        to_picture(picture).save(folder / f"{number}.png")
        (folder / f"{number}.json").write_text(json.dumps({"captions": phrases}), "utf-8")
    others = EmojiScenes(SceneConfig(size=SIZE), seed)
    scenes = [others.scene(index) for index in range(KEPT)]
    sentences = [others.captions(scene, index, 1)[0] for index, scene in enumerate(scenes)]
    folder.with_name("others.txt").write_text("\n".join(sentences) + "\n", "utf-8")


def likeness(images: Tensor, name: str) -> Tensor:
    """Decibels by which the best place and size in each picture resembles the glyph, inside its outline."""
    atlas, config = Atlas.from_font([name]), SceneConfig(size=SIZE)
    best = torch.full((len(images),), torch.inf)
    for share in (config.small, config.medium, config.large):
        glyph = atlas.resized(round(share * SIZE))[0]
        colour, alpha = 2 * glyph[:3] - glyph[3:], glyph[3:]
        # sum of alpha (x - g)^2 over the window, g the colour where alpha is 1.
        solid = (alpha > 0.9).float()
        wanted = colour * solid
        weight = solid.expand(3, -1, -1)[None]
        error = conv2d(images.square(), weight) - 2 * conv2d(images, wanted[None]) + wanted.square().sum()
        best = torch.minimum(best, error.flatten(1).amin(1) / weight.sum())
    return 10 * torch.log10(4 / best.clamp_min(1e-8))


def compare(name: str, lora: Path, output: Path) -> None:
    """What is drawn for unseen captions of the object, with the LoRA and without."""
    truth, captions = single_scenes(name, 10_000, ASKED)
    prompts = [phrases[0] for phrases in captions]
    pipe = Pipeline.from_pretrained()
    facts: dict[str, object] = {"object": name, "lora": str(lora), "asked": ASKED}
    sheets = [truth]
    with torch.no_grad():
        kept = pipe.decode(pipe.autoencoder.encode(truth.to(pipe.device, pipe.dtype))).cpu()
    facts["drawn_truth_db"] = round(float(likeness(truth, name).mean()), 2)
    facts["truth_through_the_autoencoder_db"] = round(float(likeness(kept, name).mean()), 2)
    for which in ("without", "with"):
        if which == "with":
            pipe.load_lora(lora)
        images = pipe(prompts, seed=list(range(ASKED)), output_type="pt").images.cpu()
        decibels = likeness(images, name)
        facts[f"{which}_lora_db"] = round(float(decibels.mean()), 2)
        facts[f"{which}_lora_worst_db"] = round(float(decibels.min()), 2)
        sheets.append(images)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    contact_sheet(torch.cat([each[:8] for each in sheets]), columns=8).save(output.with_suffix(".png"))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("draw", "compare"))
    parser.add_argument("place", type=Path, help="draw: folder of the pictures; compare: folder of the LoRA")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/new-glyph/compared.json"))
    parser.add_argument("--object", default="kangaroo")
    parser.add_argument("--seed", type=int, default=77)
    given = parser.parse_args()
    if given.what == "draw":
        draw(given.object, given.place, given.seed)
    else:
        compare(given.object, given.place, given.output)


if __name__ == "__main__":
    main()
