"""The Inception-v3 over which FID is defined, with the published weights, from a file of the user's."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.errors import CheckpointError
from lineardit.interop.stored import open_tensors

SIDE = 299
WIDTH = 2048
"""Numbers that describe a picture."""
PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
"""The weights of 2015 that every published FID was computed with, as they are distributed for torch."""
_UNUSED = ("fc.", "AuxLogits.")


class Convolution(nn.Module):
    """relu(norm(conv(x)))."""

    def __init__(self, width: int, out: int, kernel: tuple[int, int], stride: int, padded: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(width, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        """What one layer sees."""
        return functional.relu(self.bn(self.conv(x)))


class Layer(NamedTuple):
    """A convolution of a branch."""

    name: str
    out: int
    height: int
    width: int
    stride: int = 1


Pooling = Literal["mean", "most", "halve"]
Stage = tuple[Layer, ...]
"""One layer, or two beside each other."""
Chain = tuple[Stage, ...]
"""The stages of a branch, one after the other."""


class Mixed(nn.Module):
    """Branches beside each other; the last one pools first."""

    def __init__(self, width: int, chains: Sequence[Chain], pooling: Pooling) -> None:
        super().__init__()
        self.chains, self.pooling, self.out = chains, pooling, 0
        for chain in chains:
            before = width
            for stage in chain:
                for layer in stage:
                    kernel = (layer.height, layer.width)
                    made = Convolution(before, layer.out, kernel, layer.stride, layer.stride == 1)
                    self.add_module(f"branch{layer.name}", made)
                before = sum(layer.out for layer in stage)
            self.out += before
        self.out += width if pooling == "halve" else 0

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        """All branches' channels, in their order."""
        *plain, last = [*self.chains, ()] if self.pooling == "halve" else self.chains
        parts = [self._run(chain, x) for chain in plain]
        return torch.cat([*parts, self._run(last, self._pooled(x))], dim=1)

    def _run(self, chain: Chain, x: Tensor) -> Tensor:
        for stage in chain:
            x = torch.cat([self.get_submodule(f"branch{layer.name}")(x) for layer in stage], dim=1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pooling == "mean":
            # What lies beyond the edge does not count, as in the original and unlike torchvision.
            return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        if self.pooling == "most":
            return functional.max_pool2d(x, 3, stride=1, padding=1)
        return functional.max_pool2d(x, 3, stride=2)


class Inception(nn.Module):
    """2,048 numbers of a picture: the means over places of the last block's channels.

    The modules are called as in the published file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2, False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), 1, False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), 1, True)
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1), 1, False)
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), 1, False)
        width = 192
        self.mixed: list[str] = []
        for name, chains, pooling in _blocks():
            block = Mixed(width, chains, pooling)
            self.add_module(f"Mixed_{name}", block)
            self.mixed.append(f"Mixed_{name}")
            width = block.out
        self.eval().requires_grad_(False)

    @classmethod
    def from_file(cls, path: Path) -> "Inception":
        """The published network. Raises: CheckpointError where the file is another one."""
        tensors = open_tensors(path)
        network = cls()
        own = network.state_dict()
        needed = {name for name in own if not name.endswith("num_batches_tracked")}
        shapes = {name: stored.shape for name, stored in tensors.stored.items()}
        wrong = sorted(name for name in needed if shapes.get(name) != tuple(own[name].shape))
        wrong += sorted(name for name in shapes if name not in own and not name.startswith(_UNUSED))
        if wrong:
            raise CheckpointError(
                f"{path} is not the Inception of FID: {wrong[0]} and {len(wrong) - 1} others are missing, "
                f"unknown or of another shape. Give {PUBLISHED}."
            )
        network.load_state_dict(own | {name: tensors[name] for name in needed})
        return network

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 2048"]:
        """Features of pictures in [-1, 1], which are rounded to the 8 bits that a file of them would have."""
        levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round()
        x = (resized(levels, SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, stride=2)))
        x = functional.max_pool2d(x, 3, stride=2)
        for name in self.mixed:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def resized(images: Float[Tensor, "b c H W"], side: int) -> Float[Tensor, "b c side side"]:
    """Bilinear as TensorFlow 1 had it: row i of the result is row i H / side, blended with the next one.

    Half a pixel off, and without a filter where the picture shrinks; the weights were trained behind it.
    """
    for axis in (2, 3):
        length = images.shape[axis]
        places = torch.arange(side, device=images.device, dtype=torch.float32) * (length / side)
        first = places.floor().long().clamp_max(length - 1)
        second = (first + 1).clamp_max(length - 1)
        share = (places - first).view(-1, 1) if axis == 2 else places - first
        near = images.index_select(axis, first)
        images = near + (images.index_select(axis, second) - near) * share
    return images


def _blocks() -> Iterator[tuple[str, Sequence[Chain], Pooling]]:
    for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
        fives = _chain("5x5", (48, 1, 1), (64, 5, 5))
        doubles = _chain("3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3))
        yield name, [_one("1x1", 64), fives, doubles, _one("_pool", pooled)], "mean"
    doubles = _chain("3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3, 2))
    yield "6a", [((Layer("3x3", 384, 3, 3, 2),),), doubles], "halve"
    for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        sevens = _chain("7x7", (c, 1, 1), (c, 1, 7), (192, 7, 1))
        doubles = _chain("7x7dbl", (c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7))
        yield name, [_one("1x1", 192), sevens, doubles, _one("_pool", 192)], "mean"
    threes = _chain("3x3", (192, 1, 1), (320, 3, 3, 2))
    sevens = _chain("7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2))
    yield "7a", [threes, sevens], "halve"
    last: tuple[tuple[str, Pooling], ...] = (("7b", "mean"), ("7c", "most"))
    for name, pooling in last:
        threes = (*_chain("3x3", (384, 1, 1)), _split("3x3_2", 384))
        doubles = (*_chain("3x3dbl", (448, 1, 1), (384, 3, 3)), _split("3x3dbl_3", 384))
        yield name, [_one("1x1", 320), threes, doubles, _one("_pool", 192)], pooling


def _chain(name: str, *sizes: tuple[int, ...]) -> Chain:
    return tuple((Layer(f"{name}_{number}", *size),) for number, size in enumerate(sizes, start=1))


def _split(name: str, out: int) -> Stage:
    return Layer(f"{name}a", out, 1, 3), Layer(f"{name}b", out, 3, 1)


def _one(name: str, out: int) -> Chain:
    return ((Layer(name, out, 1, 1),),)
