"""A small network that reads emoji scenes: which objects, how many, where, in front of what."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.autoencoder.blocks import stage_blocks
from lineardit.config.detector import DetectorConfig
from lineardit.config.models import StageConfig
from lineardit.errors import CheckpointError, ConfigError
from lineardit.interop.durable import new_folder
from lineardit.interop.native import load_strict, read_tensors, write_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "detector.safetensors"
PEAK = 0.4
"""Least probability of any object at its peak: drawn objects reach 0.78 between four cells and 1 on one."""
REACH = 2
"""Cells around a peak in which there is no second one; drawn objects are 4 or more cells apart."""
BANDS = 4
"""Horizontal bands that the background is read from."""


class Found(NamedTuple):
    """One object in a picture; the centre is in fractions of the picture, from the top left."""

    name: str
    score: float
    x: float
    y: float


class Detection(NamedTuple):
    """What one picture shows."""

    objects: tuple[Found, ...]
    """The surest first."""
    background: str
    background_score: float


class Reading(NamedTuple):
    """What the network gives: logits per cell, the last class being `none`, and of the background."""

    cells: Float[Tensor, "b k h w"]
    background: Float[Tensor, "b g"]


class SceneDetector(nn.Module):
    """Convolutions at 1/4, 1/8 and 1/16 of the side, and back to 1/8, where each cell names its object.

    Trained so that the probability of an object falls off around its centre as exp(-d^2 / 2), d in cells
    (heat maps as of CenterNet, arXiv:1904.07850, with one softmax over all classes and `none`).
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        first, second, third = config.widths
        self.stem = nn.Conv2d(48, first, 3, padding=1)
        self.high = _blocks(first, config.depths[0])
        self.halve = nn.Conv2d(first, second, 2, stride=2)
        self.middle = _blocks(second, config.depths[1])
        self.halve_again = nn.Conv2d(second, third, 2, stride=2)
        self.low = _blocks(third, config.depths[2])
        self.enlarge = nn.Conv2d(third, 4 * second, 1)
        self.joined = _blocks(second, 1)
        self.objects = nn.Conv2d(second, len(config.objects) + 1, 1)
        self.background = nn.Linear(BANDS * third, len(config.backgrounds))
        # Most cells show no object: without this the first steps only learn that.
        nn.init.constant_(self.objects.bias[-1:], 6.0)  # type: ignore[index]

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Reading:
        """Read pictures of `config.size` pixels per side, in [-1, 1]."""
        x = self.high(self.stem(functional.pixel_unshuffle(images, 4)))
        x = self.middle(self.halve(x))
        low = self.low(self.halve_again(x))
        x = self.joined(x + functional.pixel_shuffle(self.enlarge(low), 2))
        bands = functional.adaptive_avg_pool2d(low.float(), (BANDS, 1)).flatten(1)
        return Reading(self.objects(x), self.background(bands))

    @torch.no_grad()
    def detect(self, images: Float[Tensor, "b 3 H W"], *, batch_size: int = 64) -> list[Detection]:
        """What each picture shows; pixels in [-1, 1], of any size."""
        found: list[Detection] = []
        device = next(self.parameters()).device
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(device).float()
            cells, background = self(_fitted(batch, self.config.size))
            found += self._found(cells.float().softmax(1).cpu(), background.float().softmax(-1).cpu())
        return found

    def _found(self, cells: Tensor, backgrounds: Tensor) -> list[Detection]:
        each = cells[:, :-1]
        anything = each.sum(1)
        # Equal neighbours are one peak: the later cell wins by a hair.
        order = torch.linspace(0, 1e-6, anything[0].numel(), dtype=torch.float64)
        ranked = anything.double() + order.view_as(anything[0])
        highest = functional.max_pool2d(ranked[:, None], 2 * REACH + 1, stride=1, padding=REACH)[:, 0]
        peaks = (ranked == highest) & (anything > PEAK)
        objects: list[list[Found]] = [[] for _ in range(len(cells))]
        for picture, row, column in peaks.nonzero().tolist():
            objects[picture].append(self._object(each[picture], row, column))
        scores, which = backgrounds.max(-1)
        return [
            Detection(tuple(sorted(found, key=lambda one: -one.score)), self.config.backgrounds[kind], score)
            for found, kind, score in zip(objects, which.tolist(), scores.tolist(), strict=True)
        ]

    def _object(self, probabilities: Tensor, row: int, column: int) -> Found:
        """Name, score and centre from the cells around a peak."""
        # Beyond the edge there is nothing.
        near = functional.pad(probabilities, (1, 1, 1, 1))[:, row : row + 3, column : column + 3]
        kind = int(near.sum((1, 2)).argmax())
        mass = near.sum(0)
        y, x = row + 0.5 + _offset(mass.sum(1)), column + 0.5 + _offset(mass.sum(0))
        cells = self.config.cells
        return Found(self.config.objects[kind], float(near[kind].max()), x / cells, y / cells)

    def save(self, folder: Path, about: Mapping[str, object] | None = None) -> None:
        """Write configuration and bfloat16 weights to a folder, which appears complete or not at all.

        Raises: OutputError where it cannot be written.
        """
        text = json.dumps({**self.config.model_dump(mode="json"), "about": dict(about or {})}, indent=1)
        with new_folder(folder) as place:
            write_tensors(place / WEIGHTS_FILE, self.state_dict(), "bf16")
            (place / CONFIG_FILE).write_text(text + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path | None = None) -> "SceneDetector":
        """Read what `save` wrote; without a folder, the detector that ships.

        Raises: CheckpointError for anything else.
        """
        folder = folder or bundled_folder()
        try:
            options = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
            options.pop("about", None)
            config = DetectorConfig(**options)
        except FileNotFoundError:
            raise CheckpointError(f"{folder} holds no detector: there is no {CONFIG_FILE} in it.") from None
        except (OSError, ValueError, TypeError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"{folder / CONFIG_FILE} describes no detector: {error}") from None
        model = cls(config)
        load_strict(model, read_tensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
        return model.eval().requires_grad_(False)


def bundled_folder() -> Path:
    """Where the detector that ships lies in the package."""
    return Path(str(files("lineardit"))) / "weights" / "detector"


def _offset(heat: Tensor) -> float:
    """How far from the middle a Gaussian of deviation 1 has its top: half the difference of logarithms."""
    before, _, after = heat.clamp_min(1e-3).log().tolist()
    return float(min(max((after - before) / 2, -1.0), 1.0))


def _blocks(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*stage_blocks(StageConfig(width=width, depth=depth), head_dim=width))


def _fitted(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images.contiguous(memory_format=torch.channels_last)
    resized = functional.interpolate(
        images, size=(size, size), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
