"""Perceptual distances: LPIPS against torchmetrics', and the one that needs no download."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image import lpips as oracle

from lineardit.errors import CheckpointError
from lineardit.training.perceptual import (
    VGG_WIDTHS,
    FilterDistance,
    Lpips,
    feature_distance,
    filter_statistics,
    perceptual_distance,
    published_names,
)


def vgg_layers(net: str, pretrained: bool = False) -> nn.Sequential:
    """What torchvision calls vgg16().features: convolutions, each with its ReLU, and pooling."""
    layers: list[nn.Module] = []
    inside = 3
    for place, out in enumerate(VGG_WIDTHS):
        if place in (2, 4, 7, 10):
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Conv2d(inside, out, 3, padding=1), nn.ReLU()]
        inside = out
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """torchmetrics' network with the published weights of the layers, over a random VGG-16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "_get_tv_model_features", vgg_layers)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network: nn.Module = oracle._LPIPS(net="vgg", pnet_rand=True)
    return network


def pictures(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    first, second = 2 * torch.rand(2, *shape, generator=generator) - 1
    return first, second


def test_lpips_from_a_file_is_torchmetrics_lpips(published: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "lpips.safetensors"
    save_file({name: tensor.clone() for name, tensor in published.state_dict().items()}, file)
    ours = perceptual_distance(file)
    images, truth = pictures(2, 3, 32, 48)
    torch.testing.assert_close(ours(images, truth), published(images, truth).flatten(), rtol=1e-5, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_a_file_of_something_else_is_refused(published: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    tensors = {name: tensor.clone() for name, tensor in published.state_dict().items()}
    del tensors["net.slice3.12.bias"]
    save_file(tensors, file)
    with pytest.raises(
        CheckpointError, match=r"does not hold LPIPS over VGG-16: net.slice3.12.bias and 0 others"
    ):
        Lpips.from_file(file)
    file.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        Lpips.from_file(file)


def test_every_weight_has_a_published_name() -> None:
    with torch.device("meta"):
        assert published_names().keys() == Lpips().state_dict().keys()


def test_the_distance_is_its_formula_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(5, 3, 4), (7, 2, 2)]
    one, two = (
        [torch.randn(2, *size, dtype=torch.float64, generator=generator) for size in sizes] for _ in range(2)
    )
    weights = [torch.rand(size[0], dtype=torch.float64, generator=generator) for size in sizes]
    right = torch.zeros(2, dtype=torch.float64)
    for first, second, weight in zip(one, two, weights, strict=True):
        for b in range(2):
            for y in range(first.shape[2]):
                for x in range(first.shape[3]):
                    f, g = first[b, :, y, x], second[b, :, y, x]
                    gap = f / (f @ f + 1e-8).sqrt() - g / (g @ g + 1e-8).sqrt()
                    right[b] += (weight * gap**2).sum() / first[0, 0].numel()
    torch.testing.assert_close(feature_distance(one, two, weights), right, rtol=1e-12, atol=0.0)
    even = [torch.full_like(weight, 1 / len(weight)) for weight in weights]
    torch.testing.assert_close(feature_distance(one, two), feature_distance(one, two, even))


def test_the_filters_see_edges_and_no_brightness() -> None:
    distance = FilterDistance()
    bank = distance.filters.double()
    torch.testing.assert_close(bank.sum((2, 3)), torch.zeros(5, 1, dtype=torch.float64), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(bank.flatten(1).norm(dim=1), torch.ones(5, dtype=torch.float64))
    ramp = torch.arange(12.0).expand(1, 3, 12, 12) / 12
    response = distance.features(ramp)[0][0, :5, 4:8, 4:8]
    # Only the derivative along x, of brightness.
    assert response[0].min() > 0.1 and response[1:].abs().max() < 1e-6


def test_an_edge_that_moved_is_farther_than_as_much_error_spread_evenly() -> None:
    picture = torch.full((1, 3, 32, 32), -0.5)
    picture[..., 16:] = 0.5
    moved = picture.roll(1, dims=3)
    moved[..., 0] = -0.5
    lighter = picture + (moved - picture).abs().mean()
    distance = FilterDistance()
    assert distance(picture, picture) == 0
    assert distance(moved, picture) > 2 * distance(lighter, picture) > 0


def test_the_offline_distance_can_be_followed_downhill_where_a_picture_is_plain() -> None:
    truth = pictures(1, 3, 16, 16)[0]
    plain = torch.zeros(1, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(perceptual_distance()(plain, truth).sum(), plain)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_filter_statistics_tell_blurred_pictures_from_sharp_ones_and_not_where_things_are() -> None:
    sharp = pictures(4, 3, 32, 32)[0]
    blurred = nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    whole, soft = filter_statistics(sharp), filter_statistics(blurred)
    # 4 scales, 5 filters and the colour itself for 3 axes of colour, mean and deviation of each.
    assert whole.shape == (4, 4 * 18 * 2)
    finest = whole[:, :15] / soft[:, :15]
    assert (finest > 1.5).all()
    mirrored = filter_statistics(sharp.flip(-1).flip(-2))
    torch.testing.assert_close(mirrored, whole, rtol=1e-3, atol=1e-4)
