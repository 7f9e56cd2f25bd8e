"""In bands of rows or whole: the same velocity, in less memory."""

import pytest
import torch
from torch import Tensor

from lineardit.config.models import TransformerConfig
from lineardit.config.presets import differing
from lineardit.errors import InputError
from lineardit.kernels import native
from lineardit.kernels.live import peak_bytes
from lineardit.transformer.bands import Band, bands_of, block_in_bands
from lineardit.transformer.block import Block, Grid
from lineardit.transformer.generation import StepCache
from lineardit.transformer.model import Transformer

SMALL = TransformerConfig(
    latent_channels=3, depth=4, width=60, head_dim=12, cross_head_dim=20, text_width=11, position_base=5
)
EQUAL = {"rtol": 1e-5, "atol": 1e-5}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(config: TransformerConfig = SMALL) -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(config).eval()
    for number, parameter in enumerate(transformer.parameters()):
        parameter.data += 0.1 * randn(*parameter.shape, seed=number)
    return transformer


LATENTS, TEXT, TIMES = randn(2, 3, 7, 5, seed=1), randn(2, 13, 11, seed=2), torch.tensor([0.25, 0.75])
MASK = torch.arange(13) < torch.tensor([[13], [4]])


@pytest.mark.parametrize("passes", ["torch", "auto"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 100])
@torch.no_grad()
def test_bands_give_the_velocity_that_the_whole_does(rows: int, passes: str) -> None:
    transformer = model(differing(SMALL, qk_norm=True, position="sincos"))
    with native.using(passes):
        whole = transformer(LATENTS, TIMES, TEXT, MASK)
        torch.testing.assert_close(transformer(LATENTS, TIMES, TEXT, MASK, rows=rows), whole, **EQUAL)
        read = transformer.read(TEXT, MASK)
        torch.testing.assert_close(transformer(LATENTS, TIMES, read, rows=rows), whole, **EQUAL)


@torch.no_grad()
def test_in_float64_bands_are_the_definition_to_the_last_digits() -> None:
    transformer = model().double()
    given = LATENTS.double(), TIMES.double(), TEXT.double(), MASK
    torch.testing.assert_close(transformer(*given, rows=2), transformer(*given), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_patches_residuals_and_a_cache_go_along() -> None:
    transformer = model(differing(SMALL, patch_size=2))
    latents = randn(2, 3, 14, 10, seed=3)
    residuals = [randn(2, 35, 60, seed=number) for number in range(2)]
    found = []
    for rows in (None, 3):
        cache = StepCache(10.0)
        first = transformer(latents, TIMES, TEXT, MASK, None, residuals, cache, rows)
        second = transformer(latents + 0.1, TIMES, TEXT, MASK, None, residuals, cache, rows)
        assert (cache.full, cache.reused) == (1, 1)
        found.append(torch.stack([first, second]))
    torch.testing.assert_close(found[1], found[0], **EQUAL)


@torch.no_grad()
def test_a_block_leaves_its_input_alone() -> None:
    block = model().blocks[0]
    assert isinstance(block, Block)
    x, table = randn(2, 35, 60, seed=4), randn(2, 6, 60, seed=5)
    kept, prompt = x.clone(), randn(2, 13, 60, seed=6)
    banded = block_in_bands(block, x, prompt, MASK, table, Grid(7, 5), 2)
    assert torch.equal(x, kept)
    torch.testing.assert_close(banded, block(x, prompt, MASK, table, Grid(7, 5)), **EQUAL)


@torch.no_grad()
def test_lower_bands_hold_less() -> None:
    transformer = model(differing(SMALL, depth=1))
    latents, read = randn(2, 3, 32, 4, seed=7), transformer.read(TEXT, MASK)

    def run(rows: int | None) -> int:
        return peak_bytes(lambda: transformer(latents, TIMES, read, rows=rows))

    taken = [run(rows) for rows in (1, 8, 16, None)]
    assert taken == sorted(taken)
    x = torch.empty(2, 32 * 4, 60)
    # Tokens before and after a block, and what one row takes.
    assert taken[0] < 4.5 * x.numel() * 4 < taken[-1] / 2.5


def test_bands_cover_every_row_once() -> None:
    assert [(band.start, band.stop) for band in bands_of(Grid(7, 5), 3)] == [(0, 3), (3, 6), (6, 7)]
    assert Band(1, 3, 5).of(torch.arange(35.0)[None, :, None]).flatten().tolist() == list(range(5, 15))
    with pytest.raises(InputError, match="rows=0: take at least one row of tokens"):
        next(bands_of(Grid(7, 5), 0))
