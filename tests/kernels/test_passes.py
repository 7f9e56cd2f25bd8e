"""The passes: their definitions against formulas in float64, and the native library against both."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lineardit.errors import InputError
from lineardit.kernels import native, passes
from lineardit.kernels.linear_attention import linear_attention, linear_attention_state
from lineardit.kernels.reference import quadratic_linear_attention
from lineardit.kernels.select import Choice

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="there is no C++ compiler here")
# Float32 sums of some hundred numbers; bfloat16 inputs are the same for both, outputs are rounded once.
NEAR = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def normed(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    b, h, w, both = x.shape
    out = bias.expand(b, h, w, both).clone()
    around = functional.pad(x, (0, 0, 1, 1, 1, 1))
    for dy in range(3):
        for dx in range(3):
            out += around[:, dy : dy + h, dx : dx + w] * weight[:, 0, dy, dx]
    content, gate = out.chunk(2, dim=-1)
    return content * gate * gate.sigmoid()


TABLE = randn(3, 6, 37)
GATE, SHIFT, SCALE = TABLE[:, :1], TABLE[:, 1:2], TABLE[:, 2:3]
X, Y = randn(3, 5, 37, seed=1), randn(3, 5, 37, seed=2)
PIXELS, TAPS, OFFSET = randn(2, 5, 3, 38), randn(38, 1, 3, 3), randn(38)
WIDE = randn(1, 11, 2, 160), randn(160, 1, 3, 3), randn(160)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]] = {
    "steered": (
        lambda x, shift, scale: passes.steered(x, shift, scale, 1e-6),
        lambda x, shift, scale: normed(x) * (1 + scale) + shift,
        (X, SHIFT, SCALE),
    ),
    "steered by tables of their own": (
        lambda x, shift, scale: passes.steered(x, shift, scale, 1e-6),
        lambda x, shift, scale: normed(x) * (1 + scale) + shift,
        (X, SHIFT.clone(), SCALE),
    ),
    "added": (passes.added, lambda x, y, gate: x + gate * y, (X, Y, GATE)),
    "added and steered": (
        lambda *given: torch.stack(passes.added_steered(*given, 1e-6)),
        lambda x, y, shift, scale: torch.stack([x + y, normed(x + y) * (1 + scale) + shift]),
        (X, Y, SHIFT, SCALE),
    ),
    "rms": (
        lambda x, weight: passes.rms_normed(x, weight, None, 1e-5),
        lambda x, weight: rms(x) * weight,
        (X, GATE[0, 0]),
    ),
    "rms of pixels, added": (
        lambda x, weight, bias, kept: passes.rms_normed(x, weight, bias, 1e-5, residual=kept),
        lambda x, weight, bias, kept: rms(x) * weight + bias + kept,
        (X.movedim(0, 1), GATE[0, 0], SHIFT[1, 0], Y.movedim(0, 1)),
    ),
    "rms, positive": (
        lambda x, weight, bias: passes.rms_normed(x, weight, bias, 1e-5, relu=True),
        lambda x, weight, bias: (rms(x) * weight + bias).clamp(min=0),
        (X, GATE[0, 0], SHIFT[1, 0]),
    ),
    "gated": (passes.depthwise_gated, gated, (PIXELS, TAPS, OFFSET)),
    "gated, whole vectors": (passes.depthwise_gated, gated, WIDE),
    "gated, one pixel": (passes.depthwise_gated, gated, (PIXELS[:, :1, :1], TAPS, OFFSET)),
    "product": (
        passes.linear,
        lambda x, weight, bias: x @ weight.T + bias,
        (X, randn(11, 37) / 6, randn(11)),
    ),
    "SiLU of a product": (
        lambda x, weight, bias: passes.linear(x, weight, bias, silu=True),
        lambda x, weight, bias: functional.silu(x @ weight.T + bias),
        (X, randn(11, 37) / 6, randn(11)),
    ),
}


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_pass_is_its_formula(name: str, dtype: torch.dtype, path: str) -> None:
    found, formula, given = CASES[name]
    rounded = [each.to(dtype) for each in given]
    wanted = formula(*(each.double() for each in rounded))
    out = found(*rounded)
    assert out.dtype == dtype and out.shape == wanted.shape
    # Definitions in bfloat16 round after every operation, the library once.
    near = NEAR[dtype] * (3 if path == "torch" and dtype == torch.bfloat16 else 1)
    assert (out.double() - wanted).abs().max() <= near * wanted.abs().max()


@needs_compiler
@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("feature_map", ["relu", "elu1"])
@pytest.mark.parametrize(("d", "e"), [(32, 32), (20, 24), (33, 17), (1, 3)])
@torch.no_grad()
def test_native_linear_attention_is_the_definition(
    d: int, e: int, feature_map: str, dtype: torch.dtype
) -> None:
    both = randn(2, 130, 3 * (d + e)).to(dtype).unflatten(-1, (3, d + e)).transpose(1, 2)
    key, value, query = both[..., :d], both[..., d:], randn(2, 3, 70, d).to(dtype)
    mask = torch.rand((2, 130), generator=torch.Generator().manual_seed(0)) > 0.3
    wanted = quadratic_linear_attention(
        *(each.double() for each in (query, key, value)), mask=mask, feature_map=feature_map
    )
    with native.using("native"):
        out = linear_attention(query, key, value, mask=mask, feature_map=feature_map, kernel="native")
        state = linear_attention_state(key, value, feature_map=feature_map)
        again = linear_attention(query, None, None, state=state, feature_map=feature_map, kernel="native")
    assert out.dtype == dtype and state.memory.dtype == torch.float32
    assert (out.double() - wanted).abs().max() <= NEAR[dtype] * wanted.abs().max()
    whole = linear_attention(query, key, value, feature_map=feature_map, kernel="torch")
    assert (again.double() - whole.double()).abs().max() <= 2 * NEAR[dtype] * whole.abs().max()


@needs_compiler
def test_what_is_not_finite_stays_so() -> None:
    x = randn(1, 4, 32)
    x[0, 1, 3], x[0, 2, 5] = float("nan"), float("inf")
    with native.using("native"), torch.no_grad():
        for dtype in NEAR:
            out = passes.steered(
                x.to(dtype), torch.zeros(1, 1, 32).to(dtype), torch.zeros(1, 1, 32).to(dtype), 1e-6
            )
            assert out.isfinite().flatten(2).all(-1).tolist() == [[True, False, False, True]]
            heads = x.to(dtype).unsqueeze(1)
            assert linear_attention(heads, heads, heads).isnan().any()


@needs_compiler
def test_the_library_leaves_gradients_and_what_it_does_not_know_to_torch() -> None:
    x = randn(2, 3, 8)
    with native.using("native"):
        assert native.takes(x) is not None
        assert native.takes(x.half()) is None and native.takes(x, x.bfloat16()) is None
        nothing = passes.steered(*(each.to("meta") for each in (x, x[:, :1], x[:, :1])), 1e-6)
        assert nothing.is_meta and nothing.shape == x.shape
        assert native.takes(x.requires_grad_()) is None
        with torch.no_grad():
            assert native.takes(x) is not None
        with torch.no_grad(), torch.autograd.forward_ad.dual_level():
            assert native.takes(x.detach()) is None
        assert torch.func.jvp(lambda y: passes.added(y, y, y[:, :1]), (x.detach(),), (x.detach(),))[1].any()
    assert native.takes(x.detach()) is None


@needs_compiler
def test_a_library_that_is_off_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "disagreement", lambda: 0.5)
    native.refusal.cache_clear()
    try:
        assert native.use("auto").name == "torch"
        with pytest.raises(InputError, match="the C\\+\\+ passes are 5.0e-01 from their definitions"):
            native.use("native")
    finally:
        native.refusal.cache_clear()
        native.use("torch")


def test_a_cache_that_cannot_be_read_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        parent = "/closed"

        def is_file(self) -> bool:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(native, "library_path", Closed)
    assert native.outlook() == Choice("torch", "/closed cannot be read (Permission denied)")


def test_without_a_compiler_torch_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiler", lambda: None)
    monkeypatch.setattr(native, "library_path", lambda: native.HEADERS[0].with_suffix(".missing"))
    native.refusal.cache_clear()
    native._library.cache_clear()
    try:
        assert "there is no C++ compiler" in native.outlook().reason
        choice = native.use("auto")
        assert choice.name == "torch" and "there is no C++ compiler" in choice.reason
    finally:
        native.refusal.cache_clear()
        native._library.cache_clear()


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(InputError, match="kernels='fast' is not known: use auto, torch or native."):
        native.use("fast")
    with pytest.raises(InputError, match="kernel='native' needs the library in use"):
        linear_attention(randn(1, 1, 2, 3), randn(1, 1, 2, 3), randn(1, 1, 2, 3), kernel="native")


@needs_compiler
def test_without_onednn_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = X, randn(11, 37), randn(11)
    with native.using("native"), torch.no_grad():
        assert native.multiplies(x, weight, bias)
        with torch.autocast("cpu", torch.bfloat16):
            assert not native.multiplies(x, weight, bias)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert not native.multiplies(x, weight, bias)
        assert torch.equal(passes.linear(x, weight, bias), functional.linear(x, weight, bias))
