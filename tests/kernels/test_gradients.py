"""Gradients through the native library: against torch's own of the definitions in float64."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lineardit.config.models import TransformerConfig
from lineardit.kernels import gradients, native, passes
from lineardit.kernels.linear_attention import linear_attention, linear_attention_state
from lineardit.kernels.reference import quadratic_linear_attention
from lineardit.training.parallel import checkpoint_blocks
from lineardit.transformer.model import Transformer

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="there is no C++ compiler here")
# Sums of some hundred float32 numbers; bfloat16 inputs are the same for both, results are rounded once.
NEAR = {torch.float32: 5e-6, torch.bfloat16: 6e-3}


@pytest.fixture(autouse=True)
def library() -> Iterator[None]:
    with native.using("native"):
        yield


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def check(
    found: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    *given: Tensor,
    near: float = NEAR[torch.float32],
) -> None:
    """Output and all gradients of `found` are those of `formula` in float64."""
    own = [each.clone().requires_grad_() for each in given]
    exact = [each.double().requires_grad_() for each in given]
    out, wanted = found(*own), formula(*exact)
    direction = randn(*wanted.shape, seed=3).to(out.dtype)
    assert "Backward" in type(out.grad_fn).__name__
    pairs = [
        (out, wanted),
        *zip(
            torch.autograd.grad(out, own, direction),
            torch.autograd.grad(wanted, exact, direction.double()),
            strict=True,
        ),
    ]
    for number, (one, two) in enumerate(pairs):
        assert one.shape == two.shape
        assert (one.double() - two).abs().max() <= near * two.abs().max(), f"number {number}"


def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    near = functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight))
    content, gate = near.permute(0, 2, 3, 1).chunk(2, dim=-1)
    return content * gate * gate.sigmoid()


def normed(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("bhnd,bhmd->bhnm", query, key) / query.shape[-1] ** 0.5
    return scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(
    "shape", [(2, 5, 3, 38), (1, 1, 1, 6), (3, 2, 7, 160), (1, 11, 2, 64), (2, 1, 5, 34), (1, 4, 1, 130)]
)
def test_the_gated_convolution_differentiates(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = randn(*shape).to(dtype)
    weight, bias = randn(shape[-1], 1, 3, 3), randn(shape[-1])
    check(passes.depthwise_gated, gated, x, weight, bias, near=NEAR[dtype])
    check(
        lambda *given: passes.depthwise_gated(*given, activate=True),
        lambda x, *rest: gated(x * x.sigmoid(), *rest),
        *(x, weight, bias),
        near=NEAR[dtype],
    )


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("feature_map", ["relu", "elu1"])
@pytest.mark.parametrize(("d", "e"), [(32, 32), (20, 24), (33, 17), (3, 1)])
def test_linear_attention_differentiates(d: int, e: int, feature_map: str, dtype: torch.dtype) -> None:
    mask = torch.rand((2, 131), generator=torch.Generator().manual_seed(0)) > 0.3
    # Tokens before heads, as a projection lays them.
    shapes = ((2, 71, 3, d), (2, 131, 3, d), (2, 131, 3, e))
    given = [randn(*shape).to(dtype).transpose(1, 2) for shape in shapes]
    check(
        lambda *inputs: linear_attention(*inputs, mask=mask, feature_map=feature_map),
        lambda *inputs: quadratic_linear_attention(*inputs, mask=mask, feature_map=feature_map),
        *given,
        near=NEAR[dtype],
    )


def test_gradients_flow_through_states_that_are_added() -> None:
    query, key, value = randn(1, 2, 5, 8), randn(1, 2, 9, 8), randn(1, 2, 9, 6)

    def in_parts(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        first = linear_attention_state(key[:, :, :4], value[:, :, :4])
        return linear_attention(query, key[:, :, 4:], value[:, :, 4:], state=first)

    check(in_parts, quadratic_linear_attention, query, key, value)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(("d", "tokens", "count"), [(72, 40, 70), (32, 17, 64), (5, 3, 1), (16, 16, 130)])
def test_attention_to_the_prompt_differentiates(d: int, tokens: int, count: int, dtype: torch.dtype) -> None:
    mask = torch.rand((3, tokens), generator=torch.Generator().manual_seed(1)) > 0.4
    mask[:, 0] = True
    shapes = ((3, count, 2, d), (3, tokens, 2, d), (3, tokens, 2, d))
    given = [randn(*shape, seed=place).to(dtype).transpose(1, 2) for place, shape in enumerate(shapes)]
    for kept in (mask, torch.ones_like(mask)):

        def found(*inputs: Tensor, kept: Tensor = kept) -> Tensor:
            out = gradients.prompt_attention(*inputs, None if kept.all() else kept)
            assert out is not None
            return out

        check(
            found,
            lambda *inputs, kept=kept: softmax_attention(*inputs, kept),
            *given,
            near=NEAR[dtype],
        )


@pytest.mark.parametrize("width", [37, 64])
@pytest.mark.parametrize("tokens", [5, 131])
def test_steering_and_adding_differentiate(width: int, tokens: int) -> None:
    x, y = randn(3, tokens, width, seed=1), randn(3, tokens, width, seed=2)
    table = randn(3, 6, width)
    gate, shift, scale = table[:, :1], table[:, 1:2], table[:, 2:3]
    check(
        lambda *given: passes.steered(*given, 1e-6),
        lambda x, shift, scale: normed(x) * (1 + scale) + shift,
        *(x, shift, scale),
    )
    check(passes.added, lambda x, y, gate: x + gate * y, x, y, gate)

    def both(x: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        total, out = passes.added_steered(x, y, shift, scale, 1e-6)
        return total * 0.5 + out

    check(
        both,
        lambda x, y, shift, scale: (x + y) * 0.5 + normed(x + y) * (1 + scale) + shift,
        x,
        y,
        shift,
        scale,
    )


CONFIG = TransformerConfig(
    latent_channels=4, patch_size=1, depth=2, width=64, head_dim=16, cross_head_dim=16, text_width=24
)


def losses(
    model: Transformer, *, autocast: bool = False, passes: str = "native"
) -> tuple[Tensor, list[Tensor]]:
    mask = torch.arange(7) < torch.tensor([5, 7, 0])[:, None]
    with native.using(passes):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(randn(3, 4, 6, 5), torch.tensor([0.1, 0.5, 0.9]), randn(3, 7, 24), mask)
            loss = (out.float() - randn(3, 4, 6, 5, seed=9)).square().mean()
        return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def model() -> Transformer:
    torch.manual_seed(0)
    made = Transformer(CONFIG)
    torch.nn.init.normal_(made.to_velocity.weight, std=0.1)
    return made


def test_a_transformer_learns_the_same_with_and_without_the_library() -> None:
    made = model()
    own, found = losses(made)
    wanted_loss, wanted = losses(made, passes="torch")
    assert abs(own - wanted_loss) < 1e-6
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_under_autocast_gradients_are_as_near_to_float32_as_without_the_library() -> None:
    made = model()
    _, exact = losses(made, passes="torch")

    def error(found: list[Tensor]) -> float:
        squares = [(one - two).square().sum() for one, two in zip(found, exact, strict=True)]
        return float(torch.stack(squares).sum() / sum(two.square().sum() for two in exact)) ** 0.5

    native_error = error(losses(made, autocast=True)[1])
    assert native_error < 0.03
    assert native_error < 1.1 * error(losses(made, autocast=True, passes="torch")[1])


def test_blocks_that_are_computed_again_give_the_same_gradients_to_the_bit() -> None:
    made, again = model(), model()
    checkpoint_blocks(again)
    for autocast in (False, True):
        kept, repeated = losses(made, autocast=autocast), losses(again, autocast=autocast)
        assert all(torch.equal(one, two) for one, two in zip(kept[1], repeated[1], strict=True))


def test_the_number_of_threads_changes_nothing() -> None:
    x, weight, bias = randn(2, 9, 8, 96), randn(96, 1, 3, 3), randn(96)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            given = [each.clone().requires_grad_() for each in (x, weight, bias)]
            found.append(torch.autograd.grad(passes.depthwise_gated(*given).sum(), given))
            table = randn(2, 2, 96).requires_grad_()
            steered = passes.steered(x.flatten(1, 2), table[:, :1], table[:, 1:], 1e-6)
            found[-1] += torch.autograd.grad(steered.square().sum(), [table])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_what_the_library_cannot_differentiate_goes_to_torch() -> None:
    x = randn(2, 5, 8).requires_grad_()
    table = randn(2, 2, 8)
    shift, scale = table[:, :1], table[:, 1:]
    assert native.learns(x.detach()) is None and native.learns(x) is not None
    assert native.learns(x.double()) is None and native.learns(x.half()) is None
    with torch.no_grad():
        assert native.learns(x) is None
    wide = passes.steered(x.double(), shift.double(), scale.double(), 1e-6)
    assert type(wide.grad_fn).__name__ == "AddBackward0"
    assert type(passes.steered(x, shift, scale, 1e-6).grad_fn).__name__ == "SteeredBackward"
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (first,) = torch.autograd.grad(
            passes.steered(x, shift, scale, 1e-6).square().sum(), x, create_graph=True
        )
        first.sum().backward()
