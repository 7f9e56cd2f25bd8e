"""Attention layers against diffusers' processors, and what must never change their output."""

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    SanaLinearAttnProcessor2_0,
    SanaMultiscaleLinearAttention,
)
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

from lineardit.kernels import native
from lineardit.kernels.reference import quadratic_linear_attention
from lineardit.nn.attention import CrossAttention, LinearSelfAttention, MultiScaleLinearAttention
from lineardit.nn.int8 import Int8Linear, quantize_linears
from lineardit.nn.norm import ChannelRMSNorm

WIDTH, HEAD_DIM = 21, 7
EQUAL = {"rtol": 0.0, "atol": 1e-5}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(module: nn.Module) -> nn.Module:
    for number, parameter in enumerate(module.parameters()):
        draw = randn(*parameter.shape, seed=number)
        spread = parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 3
        parameter.data = draw / spread + (parameter.dim() == 1)
    return module


def joined(theirs: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """diffusers' weights under our names; names in one string are joined."""
    state = theirs.state_dict()
    return {own: torch.cat([state[name] for name in foreign.split()]) for own, foreign in names.items()}


@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_linear_self_attention_is_that_of_diffusers(qk_norm: bool) -> None:
    theirs = filled(
        Attention(
            query_dim=WIDTH,
            heads=WIDTH // HEAD_DIM,
            dim_head=HEAD_DIM,
            kv_heads=WIDTH // HEAD_DIM if qk_norm else None,
            qk_norm="rms_norm_across_heads" if qk_norm else None,
            processor=SanaLinearAttnProcessor2_0(),
        )
    )
    names = {
        "to_qkv.weight": "to_q.weight to_k.weight to_v.weight",
        "to_out.weight": "to_out.0.weight",
        "to_out.bias": "to_out.0.bias",
    }
    norms = {"query_norm.weight": "norm_q.weight", "key_norm.weight": "norm_k.weight"}
    ours = LinearSelfAttention(WIDTH, HEAD_DIM, qk_norm=qk_norm)
    ours.load_state_dict(joined(theirs, names | norms if qk_norm else names))
    x = randn(2, 17, WIDTH, seed=99)
    torch.testing.assert_close(ours(x), theirs(x), **EQUAL)


def cross_attention(qk_norm: bool) -> tuple[CrossAttention, Attention]:
    theirs = filled(
        Attention(
            query_dim=WIDTH,
            cross_attention_dim=WIDTH,
            heads=WIDTH // HEAD_DIM,
            dim_head=HEAD_DIM,
            kv_heads=WIDTH // HEAD_DIM if qk_norm else None,
            qk_norm="rms_norm_across_heads" if qk_norm else None,
            bias=True,
            processor=SanaAttnProcessor2_0(),
        )
    )
    names = {
        "to_q.weight": "to_q.weight",
        "to_q.bias": "to_q.bias",
        "to_kv.weight": "to_k.weight to_v.weight",
        "to_kv.bias": "to_k.bias to_v.bias",
        "to_out.weight": "to_out.0.weight",
        "to_out.bias": "to_out.0.bias",
    }
    norms = {"query_norm.weight": "norm_q.weight", "key_norm.weight": "norm_k.weight"}
    ours = CrossAttention(WIDTH, HEAD_DIM, qk_norm=qk_norm)
    ours.load_state_dict(joined(theirs, names | norms if qk_norm else names))
    return ours, theirs


MASK = torch.tensor([[True] * 5, [True, False, True, False, False]])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("mask", [None, MASK])
@torch.no_grad()
def test_cross_attention_is_that_of_diffusers(qk_norm: bool, mask: Tensor | None) -> None:
    ours, theirs = cross_attention(qk_norm)
    x, prompt = randn(2, 17, WIDTH, seed=98), randn(2, 5, WIDTH, seed=99)
    bias = None if mask is None else (1 - mask.float())[:, None] * -10000.0
    torch.testing.assert_close(ours(x, prompt, mask), theirs(x, prompt, attention_mask=bias), **EQUAL)


@torch.no_grad()
def test_an_all_false_mask_is_as_good_as_none() -> None:
    ours, theirs = cross_attention(qk_norm=False)
    ours, theirs = ours.double(), theirs.double()
    x, prompt = randn(2, 17, WIDTH, seed=98).double(), randn(2, 5, WIDTH, seed=99).double()
    mask = torch.tensor([[False] * 5, [True, False, True, False, False]])
    bias = (1 - mask.double())[:, None] * -10000.0
    out = ours(x, prompt, mask)
    assert out.isfinite().all()
    torch.testing.assert_close(out, theirs(x, prompt, attention_mask=bias), rtol=0, atol=1e-9)
    torch.testing.assert_close(out[:1], ours(x[:1], prompt[:1]), rtol=0, atol=1e-12)


def test_an_all_false_mask_has_finite_gradients() -> None:
    ours, _ = cross_attention(qk_norm=True)
    x, prompt = (randn(1, n, WIDTH, seed=n).requires_grad_() for n in (17, 5))
    ours(x, prompt, torch.zeros(1, 5, dtype=torch.bool)).square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, prompt, *ours.parameters()))


@torch.no_grad()
def test_padding_of_the_prompt_changes_nothing() -> None:
    ours, _ = cross_attention(qk_norm=True)
    x, prompt = randn(1, 17, WIDTH, seed=98), randn(1, 5, WIDTH, seed=99)
    padded = torch.cat([prompt, 1e3 * randn(1, 8, WIDTH, seed=97)], dim=1)
    mask = torch.arange(13)[None] < 5
    torch.testing.assert_close(ours(x, padded, mask), ours(x, prompt), **EQUAL)


@torch.no_grad()
def test_permuting_tokens_permutes_the_output() -> None:
    attention = LinearSelfAttention(WIDTH, HEAD_DIM, qk_norm=True).double()
    x, order = randn(2, 11, WIDTH, seed=1).double(), torch.randperm(11)
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])


@torch.no_grad()
def test_permuting_the_prompt_changes_nothing() -> None:
    ours, _ = cross_attention(qk_norm=False)
    x, prompt, order = randn(2, 17, WIDTH, seed=1), randn(2, 5, WIDTH, seed=2), torch.randperm(5)
    permuted = ours(x, prompt[:, order], MASK[:, order])
    torch.testing.assert_close(permuted, ours(x, prompt, MASK), **EQUAL)


@torch.no_grad()
def test_a_row_of_a_batch_is_what_it_is_alone() -> None:
    linear, (cross, _) = LinearSelfAttention(WIDTH, HEAD_DIM), cross_attention(qk_norm=False)
    x, prompt = randn(2, 17, WIDTH, seed=1), randn(2, 5, WIDTH, seed=2)
    torch.testing.assert_close(linear(x)[1:], linear(x[1:]), **EQUAL)
    torch.testing.assert_close(cross(x, prompt, MASK)[1:], cross(x[1:], prompt[1:], MASK[1:]), **EQUAL)


@torch.no_grad()
def test_the_feature_map_is_the_one_asked_for() -> None:
    attention = LinearSelfAttention(WIDTH, HEAD_DIM, feature_map="elu1").double()
    x = randn(2, 11, WIDTH, seed=1).double()
    heads = (part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for part in attention.to_qkv(x).chunk(3, -1))
    mixed = quadratic_linear_attention(*heads, feature_map="elu1").transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.to_out(mixed))


@torch.no_grad()
def test_qk_norm_spans_all_heads() -> None:
    attention = LinearSelfAttention(WIDTH, HEAD_DIM, qk_norm=True).double()
    x = randn(2, 11, WIDTH, seed=1).double()
    query, key, value = attention.to_qkv(x).chunk(3, -1)
    heads = (
        part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
        for part in (*(functional.rms_norm(y, (WIDTH,), eps=1e-5) for y in (query, key)), value)
    )
    mixed = quadratic_linear_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.to_out(mixed))


@pytest.mark.parametrize("kernels", [(), (5,), (3, 7)])
@pytest.mark.parametrize(("height", "width"), [(5, 11), (2, 3)])
@torch.no_grad()
def test_multi_scale_attention_is_that_of_diffusers(
    kernels: tuple[int, ...], height: int, width: int
) -> None:
    # 2 x 3 pixels are fewer than head_dim: there diffusers computes the quadratic form.
    theirs = filled(
        SanaMultiscaleLinearAttention(
            WIDTH,
            WIDTH,
            attention_head_dim=HEAD_DIM,
            norm_type="rms_norm",
            kernel_sizes=kernels,
            residual_connection=True,
        )
    )
    ours = MultiScaleLinearAttention(WIDTH, HEAD_DIM, kernels, ChannelRMSNorm(WIDTH, bias=True))
    names = {
        "to_qkv.weight": "to_q.weight to_k.weight to_v.weight",
        "to_out.weight": "to_out.weight",
        "norm.weight": "norm_out.weight",
        "norm.bias": "norm_out.bias",
    }
    for scale in range(len(kernels)):
        names[f"scales.{scale}.0.weight"] = f"to_qkv_multiscale.{scale}.proj_in.weight"
        names[f"scales.{scale}.1.weight"] = f"to_qkv_multiscale.{scale}.proj_out.weight"
    ours.load_state_dict(joined(theirs, names))
    x = randn(2, WIDTH, height, width, seed=99)
    torch.testing.assert_close(x + ours(x), theirs(x), **EQUAL)


def layer_and_prompts(
    counts: tuple[int, ...], **options: bool
) -> tuple[CrossAttention, Tensor, Tensor, Tensor]:
    """A layer of three heads of seven channels, tokens, and prompts of different lengths with their mask."""
    ours = CrossAttention(WIDTH, HEAD_DIM, **options)
    filled(ours)
    x, text = randn(len(counts), 17, WIDTH, seed=98), randn(len(counts), max(counts), WIDTH, seed=99)
    return ours, x, text, torch.arange(max(counts)) < torch.tensor(counts)[:, None]


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [((2, 4), [True, True]), ((7, 1), [False, True]), ((3, 9, 3), [True, False, True]), ((8, 9), [])],
)
@torch.no_grad()
def test_the_shortest_prompts_are_folded_as_long_as_they_take_no_more_room_than_the_layers(
    counts: tuple[int, ...], chosen: list[bool]
) -> None:
    ours, x, text, mask = layer_and_prompts(counts)
    with native.using("native"):
        read = ours.read(text[mask], counts)
        assert [each is not None for each in read.folded] == chosen
        torch.testing.assert_close(ours(x, read), ours(x, text, mask), **EQUAL)
        last = ours(x[1:], read.rows(1, len(counts)))
        torch.testing.assert_close(last, ours(x[1:], text[1:], mask[1:]), **EQUAL)
    # What was read for the library serves torch, too.
    torch.testing.assert_close(ours(x, read), ours(x, text, mask), **EQUAL)


@torch.no_grad()
def test_folded_prompts_take_the_room_of_the_layers_at_most_and_none_where_they_must_not() -> None:
    ours, text = CrossAttention(128, 32), randn(33, 128, seed=9)
    with native.using("native"):
        read = ours.read(text[:32], (16, 16))
        room = sum(each.keys.nbytes + each.values.nbytes for each in read.folded if each is not None)
        assert room == ours.to_q.weight.nbytes + ours.to_out.weight.nbytes
        assert [each is not None for each in ours.read(text, (16, 17)).folded] == [True, False]
        assert ours.read(text, (16, 17), folds=False).folded == ()


@torch.no_grad()
def test_a_norm_between_keeps_prompts_from_being_folded() -> None:
    ours, x, text, mask = layer_and_prompts((2, 4), qk_norm=True)
    with native.using("native"):
        read = ours.read(text[mask], (2, 4))
        assert read.folded == ()
        torch.testing.assert_close(ours(x, read), ours(x, text, mask), **EQUAL)


@torch.no_grad()
def test_tokens_in_a_band_are_answered_as_in_the_whole() -> None:
    ours, x, text, mask = layer_and_prompts((2, 4))
    with native.using("native"):
        read = ours.read(text[mask], (2, 4))
        torch.testing.assert_close(ours(x[:, 3:9], read), ours(x, read)[:, 3:9], **EQUAL)


@torch.no_grad()
def test_layers_of_int8_are_folded_as_what_they_stand_for() -> None:
    ours, x, text, mask = layer_and_prompts((1, 2))
    quantize_linears(ours)
    with native.using("native"):
        read = ours.read(text[mask], (1, 2))
        # Rows of int8 take a quarter of the room of float32.
        assert [each is not None for each in read.folded] == [True, False]
        exact = CrossAttention(WIDTH, HEAD_DIM)
        state = ours.to_kv.state_dict(prefix="to_kv.")
        for name in ("to_q", "to_out"):
            layer = ours.get_submodule(name)
            assert isinstance(layer, Int8Linear)
            state |= {f"{name}.weight": layer.dequantized(), f"{name}.bias": layer.bias}
        exact.load_state_dict(state)
        torch.testing.assert_close(ours(x, read)[0], exact(x, text, mask)[0], **EQUAL)


@pytest.mark.parametrize("masked", [True, False])
def test_training_with_short_prompts_gives_the_gradients_of_torch(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    ours, x, text, kept = layer_and_prompts((1, 3, 2))
    mask = kept if masked else None

    def gradients() -> list[Tensor]:
        given = [x.clone().requires_grad_(), text.clone().requires_grad_()]
        out = ours(*given, mask)
        return [out, *torch.autograd.grad(out.square().sum(), [*given, *ours.parameters()])]

    wanted = gradients()
    with native.using("native"):
        found = gradients()
        assert type(found[0].grad_fn).__name__ == "LearnedBackward"
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.detach().abs().max()))


def test_training_with_long_prompts_attends_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    ours, x, text, _ = layer_and_prompts((9, 9))
    with native.using("native"):
        out = ours(x.requires_grad_(), text)
    assert type(out.grad_fn).__name__ != "LearnedBackward"
    torch.testing.assert_close(out, ours(x, text), **EQUAL)


def test_prompts_padded_for_a_gpu_say_the_same() -> None:
    torch.manual_seed(0)
    ours, counts = CrossAttention(64, 16), (3, 40, 33)
    x, prompt = torch.randn(3, 5, 64), torch.randn(sum(counts), 64)
    wanted = ours(x, ours.read(prompt, counts))
    both = nn.utils.rnn.pad_sequence(list(ours.to_kv(prompt).split(counts)), batch_first=True)
    read = ours._padded(both, counts)
    assert read.key.shape[2] == 64 and not read.counts
    torch.testing.assert_close(ours(x, read), wanted)
    torch.testing.assert_close(ours(x[1:2], read.rows(1, 2)), wanted[1:2])
