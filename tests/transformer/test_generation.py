"""What steps share: prompts that were read once, the residual of the middle blocks, and the native passes."""

import pytest
import torch
from torch import Tensor

from lineardit.config.models import TransformerConfig
from lineardit.config.presets import differing
from lineardit.errors import InputError, ShapeError
from lineardit.kernels import native
from lineardit.transformer.generation import StepCache
from lineardit.transformer.model import Transformer

SMALL = TransformerConfig(
    latent_channels=3, depth=4, width=60, head_dim=12, cross_head_dim=20, text_width=11, position_base=5
)
EQUAL = {"rtol": 0.0, "atol": 1e-5}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(config: TransformerConfig = SMALL) -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(config).eval()
    for number, parameter in enumerate(transformer.parameters()):
        parameter.data += 0.1 * randn(*parameter.shape, seed=number)
    return transformer


LATENTS, TEXT, TIMES = randn(3, 3, 5, 7, seed=1), randn(3, 13, 11, seed=2), torch.tensor([0.25, 0.75, 0.5])
MASK = torch.arange(13) < torch.tensor([[13], [4], [7]])
MASK[2, 3] = False


@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_prompts_that_were_read_before_say_the_same(qk_norm: bool) -> None:
    transformer = model(differing(SMALL, qk_norm=qk_norm))
    for mask in (MASK, None, MASK & torch.tensor([[True], [False], [True]])):
        expected = transformer(LATENTS, TIMES, TEXT, mask)
        read = transformer.read(TEXT, mask)
        torch.testing.assert_close(transformer(LATENTS, TIMES, read), expected, **EQUAL)
        rows = transformer(LATENTS[1:], TIMES[1:], read.rows(1, 3))
        torch.testing.assert_close(rows, expected[1:], **EQUAL)


@torch.no_grad()
def test_only_tokens_that_are_there_are_read() -> None:
    transformer, seen = model(), []
    layers = [transformer.prompt_projection.first, transformer.blocks[1].cross_attention.to_kv]
    for layer in layers:
        layer.register_forward_hook(lambda _, given, out: seen.append(given[0].numel() // given[0].shape[-1]))
    read = transformer.read(TEXT, MASK)
    assert seen == [13 + 4 + 6] * 2
    for _ in range(2):
        transformer(LATENTS, TIMES, read)
    assert len(seen) == 2
    assert read.blocks[0].counts == (13, 4, 6)


@pytest.mark.parametrize("rows", [None, 2])
@torch.no_grad()
def test_latents_of_several_prompts_are_seen_once_until_the_prompt_is_read(rows: int | None) -> None:
    transformer, seen = model(), []
    text, mask = torch.cat([TEXT.flip(0), TEXT]), torch.cat([MASK.roll(1, 0), MASK])
    repeated = LATENTS.repeat(2, 1, 1, 1), TIMES.repeat(2)
    expected = transformer(*repeated, text, mask)
    assert (expected[:3] - expected[3:]).abs().max() > 1e-2
    for block in transformer.blocks:
        block.attention.to_qkv.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    read = transformer.read(text, mask)
    for told in ((text, mask), (read, None)):
        found = transformer(LATENTS, TIMES, *told, rows=rows)
        torch.testing.assert_close(found, expected, **EQUAL)
    passes = 1 if rows is None else 2 * 3  # states of all bands, then what queries find in them
    assert seen == ([3] * passes + [6] * (passes * 3)) * 2
    cached = transformer(LATENTS, TIMES, read, rows=rows, cache=StepCache(0.5))
    torch.testing.assert_close(cached, expected, **EQUAL)


def test_every_latent_has_as_many_prompts() -> None:
    transformer = model()
    with pytest.raises(ShapeError, match="there are 3 prompts for 2 latents"):
        transformer(LATENTS[:2], TIMES[:2], TEXT, MASK)
    with pytest.raises(ShapeError, match="there are 2 prompts for 3 latents"):
        transformer(LATENTS, TIMES, transformer.read(TEXT[:2], MASK[:2]))


def test_a_mask_belongs_to_text_and_text_to_its_encoder() -> None:
    transformer = model()
    with pytest.raises(InputError, match="mask is given beside prompts that were read with theirs"):
        transformer(LATENTS, TIMES, transformer.read(TEXT, MASK), MASK)
    with pytest.raises(ShapeError, match="text embeddings have width 12, the model takes text_width=11"):
        transformer.read(torch.zeros(2, 13, 12))


def steps(transformer: Transformer, cache: StepCache | None, speed: float = 0.02) -> Tensor:
    """Six steps along latents that change little by little."""
    out = [transformer(LATENTS * (1 + speed * step), TIMES, TEXT, MASK, cache=cache) for step in range(6)]
    return torch.stack(out)


@torch.no_grad()
def test_a_threshold_of_zero_runs_every_block_and_changes_no_bit() -> None:
    transformer, cache = model(), StepCache(0.0)
    assert torch.equal(steps(transformer, cache), steps(transformer, None))
    assert (cache.full, cache.reused) == (6, 0)


@torch.no_grad()
def test_a_threshold_reuses_the_middle_blocks_and_stays_near() -> None:
    transformer, cache = model(), StepCache(0.1)
    calls: list[int] = []
    for number, block in enumerate(transformer.blocks):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    out = steps(transformer, cache)
    assert cache.reused > 0 and cache.full > 0 and cache.full + cache.reused == 6
    assert calls.count(0) == calls.count(3) == 6 and calls.count(1) == calls.count(2) == cache.full
    exact = steps(transformer, None)
    assert torch.equal(out[0], exact[0])
    assert 0 < (out - exact).norm() < 0.1 * exact.norm()


@torch.no_grad()
def test_steps_that_change_much_or_batches_that_do_run_in_full() -> None:
    transformer, cache = model(), StepCache(0.1)
    for latents in (LATENTS, -LATENTS, -LATENTS[:1]):
        transformer(latents, TIMES[: len(latents)], TEXT[: len(latents)], cache=cache)
    assert (cache.reused, cache.full) == (0, 3)


@torch.no_grad()
def test_one_picture_that_changes_decides_for_its_batch() -> None:
    transformer, cache = model(), StepCache(0.1)
    transformer(LATENTS, TIMES, TEXT, cache=cache)
    other = LATENTS.clone()
    other[1] = -5 * other[1]
    transformer(other, TIMES, TEXT, cache=cache)
    assert cache.reused == 0
    transformer(other, TIMES, TEXT, cache=cache)
    assert cache.reused == 1


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_none_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="is not 0 or more. Use 0 for exact steps"):
        StepCache(threshold)


@pytest.mark.skipif(native.compiler() is None, reason="there is no C++ compiler here")
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "position": "sincos"}])
@torch.no_grad()
def test_the_native_passes_give_the_same_velocity(changes: dict[str, object]) -> None:
    transformer = model(differing(SMALL, **changes))
    expected = transformer(LATENTS, TIMES, TEXT, MASK)
    with native.using("native"):
        found = transformer(LATENTS, TIMES, transformer.read(TEXT, MASK))
        half = transformer.bfloat16()(LATENTS, TIMES, TEXT, MASK)
    torch.testing.assert_close(found, expected, **EQUAL)
    assert half.dtype == torch.bfloat16
    assert 0 < (half.float() - expected).norm() < 0.03 * expected.norm()
