"""Pictures of a folder, without captions: what an autoencoder learns from and is measured on."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lineardit.config.data import MOST_PIXELS
from lineardit.config.reconstruction import PicturesConfig
from lineardit.data.images import BadPicture, decode, quiet_pillow, read_header
from lineardit.errors import InputError

ENDINGS = {".png", ".jpg", ".jpeg", ".webp"}
KEPT_BYTES = 2 << 30
"""Decoded pictures that stay in memory, so that small folders are decoded once."""
NAMED = 5
"""Files that a warning names one by one."""

_log = logging.getLogger(__name__)


class PictureFolder:
    """The pictures below a folder, in the order of their names, scaled so that the shorter side is `size`.

    The same pictures are held out in every run. Files that are no pictures, announce too many pixels or are
    smaller than `size` are left out, and named in one warning.

    Raises: InputError where fewer than one picture is left for each split.
    """

    def __init__(self, config: PicturesConfig, split: Literal["train", "held_out", "all"]) -> None:
        self.config = config
        if not config.folder.is_dir():
            raise InputError(f"{config.folder} is no folder. Give one that holds PNG, JPEG or WebP files.")
        files = sorted(path for path in config.folder.rglob("*") if path.suffix.lower() in ENDINGS)
        good, bad = [], []
        for path in files:
            problem = _problem(path, config.size)
            if problem is None:
                good.append(path)
            else:
                bad.append(f"{path.relative_to(config.folder)} ({problem})")
        if bad and split != "held_out":
            more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            _log.warning("left out %d of %d files: %s%s", len(bad), len(files), ", ".join(bad[:NAMED]), more)
        if len(good) < 2:
            raise InputError(
                f"{config.folder} holds {len(good)} pictures of at least {config.size} pixels: "
                "2 are needed, one to learn from and one to see how it goes."
            )
        kept = set(_held_out(len(good), config.held_out_share))
        wanted = {"train": set(range(len(good))) - kept, "held_out": kept, "all": set(range(len(good)))}
        self.paths = [good[index] for index in sorted(wanted[split])]
        self._decoded: dict[int, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.paths)

    def levels(self, index: int) -> Tensor:
        """Picture `index` as (3, H, W) bytes. Raises: InputError where it cannot be read, naming it."""
        if index in self._decoded:
            return self._decoded[index]
        path = self.paths[index]
        try:
            levels = _read(path, self.config.size)
        except (OSError, BadPicture) as error:
            raise InputError(f"{path} cannot be read: {error}. Remove or replace it.") from None
        if self._bytes + levels.numel() <= KEPT_BYTES:
            self._decoded[index] = levels
            self._bytes += levels.numel()
        return levels

    def squares(self, indices: Sequence[int]) -> Float[Tensor, "b 3 size size"]:
        """The middle of pictures, pixels in [-1, 1]."""
        side = self.config.size
        parts = []
        for levels in map(self.levels, indices):
            top, left = ((length - side) // 2 for length in levels.shape[1:])
            parts.append(levels[:, top : top + side, left : left + side])
        return _pixels(torch.stack(parts))

    def windows(
        self, indices: Sequence[int], side: int, generator: torch.Generator
    ) -> Float[Tensor, "b 3 side side"]:
        """A square anywhere in each picture, some of them mirrored, pixels in [-1, 1]."""
        parts = []
        draws = torch.rand(len(indices), 3, generator=generator).tolist()
        for index, (down, right, mirror) in zip(indices, draws, strict=True):
            levels = self.levels(index)
            top, left = (
                int(draw * (length - side + 1))
                for draw, length in zip((down, right), levels.shape[1:], strict=True)
            )
            window = levels[:, top : top + side, left : left + side]
            parts.append(window.flip(-1) if self.config.flip and mirror < 0.5 else window)
        return _pixels(torch.stack(parts))


def _problem(path: Path, size: int) -> str | None:
    """Why a file is left out, as its header says."""
    try:
        with quiet_pillow():
            header = read_header(path.read_bytes(), MOST_PIXELS)
    except (OSError, BadPicture) as error:
        return str(error)
    small = min(header.width, header.height) < size
    return f"{header.width}x{header.height} pixels" if small else None


def _read(path: Path, size: int) -> Tensor:
    with quiet_pillow():
        picture = decode(path.read_bytes(), MOST_PIXELS)
    scale = size / min(picture.size)
    if scale < 1:
        width, height = (max(size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).contiguous()


def _pixels(levels: Tensor) -> Tensor:
    return levels.float() / 127.5 - 1


def _held_out(count: int, share: float) -> list[int]:
    """Which of `count` pictures are kept from training: at least one, and not all."""
    kept = min(count - 1, max(1, round(share * count)))
    return random.Random(0).sample(range(count), kept)
