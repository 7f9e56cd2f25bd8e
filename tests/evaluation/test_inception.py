"""The network of FID against numbers of torch-fidelity 0.4.0, recorded with weights of a formula."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lineardit.errors import CheckpointError
from lineardit.evaluation.inception import Inception, resized

# Of FeatureExtractorInceptionV3, without its last linear layer: a line "name (shape)" per tensor, sorted.
LISTING = "e22ffc91a09f7caa1af2ce051c7ddf26018012910da85827a0b035b343f00177"
# Of the two pictures below: some of the 2,048 features, and the means of all.
PLACES = [1969, 1951, 2042, 2024]
FEATURES = [
    [2.4696624279022217, 2.4578704833984375, 2.451871156692505, 2.4268174171447754],
    [2.3783724308013916, 2.3519463539123535, 2.3530728816986084, 2.3137154579162598],
]
MEANS = [0.1573627534526021, 0.15419691107828187]


def weights() -> dict[str, Tensor]:
    """Waves: no generator, so that they are the same everywhere."""
    made = {}
    state = Inception().state_dict()
    for number, name in enumerate(sorted(state)):
        tensor = state[name]
        if name.endswith("num_batches_tracked"):
            continue
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + number).view(tensor.shape)
        if name.endswith("conv.weight"):
            wave = wave * 0.9 / tensor[0].numel() ** 0.5
        elif not name.endswith("bias") and "mean" not in name:
            wave = 1 + wave / 2
        else:
            wave = wave / 10
        made[name] = wave.float()
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file({**weights(), "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, place)
    return place


def test_features_are_those_of_torch_fidelity(file: Path) -> None:
    levels = (torch.arange(2 * 3 * 70 * 91) * 37 % 256).view(2, 3, 70, 91)
    features = Inception.from_file(file)(levels / 127.5 - 1)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features[:, PLACES], torch.tensor(FEATURES), rtol=1e-4, atol=0)
    torch.testing.assert_close(features.double().mean(1), torch.tensor(MEANS).double(), rtol=1e-5, atol=0)


def test_names_and_shapes_are_the_published_ones() -> None:
    state = Inception().state_dict()
    lines = [f"{name} {tuple(state[name].shape)}" for name in sorted(state) if not name.endswith("tracked")]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == LISTING


def test_resizing_is_tensorflows_of_then() -> None:
    line = torch.tensor([0.0, 10.0, 40.0])
    # Places 0, 0.6, 1.2, 1.8, 2.4, of which the last has no right neighbour.
    expected = torch.tensor([0.0, 6.0, 16.0, 34.0, 40.0])
    image = line.expand(1, 1, 3, 3)
    torch.testing.assert_close(resized(image, 5)[0, 0], expected.expand(5, 5))
    torch.testing.assert_close(resized(image.mT, 5)[0, 0], expected[:, None].expand(5, 5))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_another_network_is_refused(change: str, tmp_path: Path) -> None:
    tensors = weights()
    if change == "missing":
        del tensors["Mixed_7c.branch_pool.bn.running_var"]
    elif change == "unknown":
        tensors["Mixed_8a.conv.weight"] = torch.zeros(1)
    else:
        tensors["Conv2d_1a_3x3.conv.weight"] = torch.zeros(32, 3, 5, 5)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is not the Inception of FID: .* and 0 others"):
        Inception.from_file(tmp_path / "other.safetensors")
