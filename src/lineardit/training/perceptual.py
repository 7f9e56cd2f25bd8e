"""How different two pictures look: the LPIPS formula, over the published network or over fixed filters."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from lineardit.errors import CheckpointError

EPS = 1e-8
# Convolutions of VGG-16 up to the last that LPIPS reads, and how many of them each of its slices has.
VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_SLICES = (2, 2, 3, 3, 3)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SCALES = 4
DEVIATION = 0.8
CONTRAST = 0.1
"""Feature that is the same everywhere: differences in areas plainer than this count for little."""


def feature_distance(
    features: Sequence[Float[Tensor, "b _c _h _w"]],
    others: Sequence[Float[Tensor, "b _c _h _w"]],
    weights: Sequence[Float[Tensor, " _c"]] | None = None,
) -> Float[Tensor, " b"]:
    """sum over layers of mean over places of sum over channels w (f / |f| - g / |g|)^2 (arXiv:1801.03924).

    |f| is the length over channels at one place, sqrt(sum f^2 + 1e-8). Without weights each is 1 / channels.
    """
    total = torch.zeros(len(features[0]), device=features[0].device, dtype=features[0].dtype)
    for layer, (first, second) in enumerate(zip(features, others, strict=True)):
        difference = (_unit(first) - _unit(second)).square()
        if weights is None:
            total = total + difference.mean((1, 2, 3))
        else:
            total = total + torch.einsum("bchw,c->bhw", difference, weights[layer]).mean((1, 2))
    return total


class Lpips(nn.Module):
    """LPIPS over VGG-16 with the published weights, from a file of the user's.

    The file is the state dict of `lpips.LPIPS(net="vgg")`, version 0.1, saved as safetensors.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise((3, *VGG_WIDTHS))]
        self.slices = nn.ModuleList()
        for count in VGG_SLICES:
            self.slices.append(nn.ModuleList(convolutions[:count]))
            del convolutions[:count]
        ends = [sum(VGG_SLICES[: number + 1]) for number in range(len(VGG_SLICES))]
        self.weights = nn.ParameterList(torch.ones(VGG_WIDTHS[end - 1]) for end in ends)
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, path: Path) -> "Lpips":
        """The published network. Raises: CheckpointError where the file is another one."""
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is no safetensors file: {error}.") from None
        with torch.device("meta"):
            network = cls()
        own = network.state_dict()
        named = {name: tensors.get(foreign) for name, foreign in published_names().items()}
        wrong = [
            name for name, tensor in named.items() if tensor is None or tensor.numel() != own[name].numel()
        ]
        if wrong:
            raise CheckpointError(
                f"{path} does not hold LPIPS over VGG-16: {published_names()[wrong[0]]} and "
                f"{len(wrong) - 1} others are missing or of another shape. "
                "Save lpips.LPIPS(net='vgg').state_dict() as safetensors."
            )
        loaded = cls()
        loaded.load_state_dict(
            {name: tensor.reshape(own[name].shape) for name, tensor in named.items() if tensor is not None}
        )
        return loaded.requires_grad_(False)

    def forward(
        self, images: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]
    ) -> Float[Tensor, " b"]:
        """The distance of each pair; pixels in [-1, 1]."""
        return feature_distance(self.features(images), self.features(truth), list(self.weights))

    def features(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """What the last convolution of each slice says."""
        x, features = (images - self.shift) / self.scale, []
        for number, convolutions in enumerate(self.slices):
            x = functional.max_pool2d(x, 2) if number else x
            assert isinstance(convolutions, nn.ModuleList)
            for convolution in convolutions:
                x = functional.relu(convolution(x))
            features.append(x)
        return features


class FilterDistance(nn.Module):
    """The same formula over fixed filters at four scales: nothing is learned, nothing is downloaded.

    Each scale sees brightness, red against green and blue against yellow through the first and second
    derivatives of a Gaussian, beside a constant. It knows edges, lines and colours, and no objects.
    """

    filters: Tensor
    colours: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", _derivatives(), persistent=False)
        colours = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]])
        self.register_buffer("colours", colours, persistent=False)

    def forward(
        self, images: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]
    ) -> Float[Tensor, " b"]:
        """The distance of each pair; pixels in [-1, 1]."""
        return feature_distance(self.features(images), self.features(truth))

    def features(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _c _h _w"]]:
        """Filter responses, a constant and the colours themselves; each scale has half of the side."""
        x, features = torch.einsum("bchw,oc->bohw", images, self.colours), []
        margin = self.filters.shape[-1] // 2
        bank = self.filters.repeat(3, 1, 1, 1)
        for _ in range(SCALES):
            padded = functional.pad(x, (margin,) * 4, mode="replicate")
            responses = functional.conv2d(padded, bank, groups=3)
            features.append(torch.cat([responses, x, torch.full_like(x[:, :1], CONTRAST)], dim=1))
            if min(x.shape[-2:]) < 2:
                break
            x = functional.avg_pool2d(x, 2)
        return features


@torch.no_grad()
def filter_statistics(images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b f"]:
    """What the filters say of whole pictures: means and deviations over places of their responses' sizes.

    A description without anything learned: two sets of pictures with the same colours, contrasts and
    amount of detail at every scale have the same. A Frechet distance over it is no FID.
    """
    described = []
    for features in FilterDistance().to(images.device).features(images.float()):
        # The last channel is the constant.
        sizes = features[:, :-1].abs().flatten(2)
        described += [sizes.mean(2), sizes.std(2, correction=0)]
    return torch.cat(described, dim=1)


def perceptual_distance(weights: Path | None = None) -> nn.Module:
    """LPIPS with the published weights where the user has them, else the distance that needs none."""
    return FilterDistance() if weights is None else Lpips.from_file(weights)


def published_names() -> dict[str, str]:
    """The names of `Lpips`, and those of the published state dict."""
    names, layer = {}, 0
    for number, count in enumerate(VGG_SLICES):
        # There a layer is a convolution, its ReLU or the pooling before a slice.
        layer += number > 0
        for place in range(count):
            for part in ("weight", "bias"):
                names[f"slices.{number}.{place}.{part}"] = f"net.slice{number + 1}.{layer}.{part}"
            layer += 2
        names[f"weights.{number}"] = f"lin{number}.model.1.weight"
    return names


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True) + EPS).sqrt()


def _derivatives() -> Float[Tensor, "5 1 5 5"]:
    """d/dx, d/dy, d2/dx2, d2/dy2 and d2/dxdy of a Gaussian, each of length 1."""
    line = torch.arange(5, dtype=torch.float64) - 2
    blur = (-line.square() / (2 * DEVIATION**2)).exp()
    slope, bend = line * blur, (line.square() / DEVIATION**2 - 1) * blur
    bend = bend - bend.mean()
    pairs = ((blur, slope), (slope, blur), (blur, bend), (bend, blur), (slope, slope))
    filters = torch.stack([torch.outer(rows, columns) for rows, columns in pairs])
    return (filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1)).float().unsqueeze(1)
