"""A prompt that was multiplied into the layers around its attention, against the definition in float64."""

import pytest
import torch
from torch import Tensor

from lineardit.kernels import native
from lineardit.kernels.prompt import Around, answer, are_short, folded, learned, prompted

# Length of the error over that of the answer without its bias; 6e-7 and 6e-3 where nothing is folded.
NEAR = {torch.float32: 3e-6, torch.bfloat16: 8e-3}
DTYPES = pytest.mark.parametrize("dtype", NEAR)
SHAPES = pytest.mark.parametrize(
    "shape",
    [(256, 16, 72, 2), (250, 16, 72, 60), (100, 3, 20, 7), (13, 2, 10, 17), (1, 4, 8, 1), (700, 5, 7, 33)],
)
"""Tokens of the picture, heads, channels of one, tokens of the prompt: whole vectors and not, one token, more
tokens than a thread takes at once, and prompts that are longer than it pays."""


def drawn(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Around, Tensor, Tensor]:
    count, heads, d, tokens = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def draw(*sizes: int, spread: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=generator) * spread).to(dtype)

    c = heads * d
    # Scores of several units, so that the shares are far from equal.
    query, out = draw(c, c, spread=2 / c**0.5), draw(c, c, spread=c**-0.5)
    around = Around(query, draw(c), out, draw(c))
    return draw(count, c), around, draw(heads, tokens, d), draw(heads, tokens, d)


def defined(x: Tensor, around: Around, key: Tensor, value: Tensor) -> Tensor:
    wide, key, value = Around(*(each.double() for each in around)), key.double(), value.double()
    query = x.double() @ wide.query.T + wide.query_bias
    heads = query.unflatten(-1, (len(key), -1)).transpose(0, 1)
    shares = torch.softmax(heads @ key.transpose(1, 2) / key.shape[-1] ** 0.5, -1)
    return (shares @ value).transpose(0, 1).flatten(1) @ wide.out.T + wide.out_bias


@DTYPES
@SHAPES
@torch.no_grad()
def test_it_is_attention_between_two_layers(
    shape: tuple[int, int, int, int], dtype: torch.dtype, path: str
) -> None:
    given = drawn(shape, dtype)
    wanted, bias = defined(*given), given[1].out_bias
    found = prompted(*given)
    assert found.dtype == dtype and found.shape == wanted.shape
    assert (found.double() - wanted).norm() <= NEAR[dtype] * (wanted - bias).norm()


@DTYPES
@torch.no_grad()
def test_threads_change_nothing(dtype: torch.dtype, path: str) -> None:
    given = drawn((250, 4, 24, 11), dtype)
    threads = torch.get_num_threads()
    several = prompted(*given)
    torch.set_num_threads(1)
    try:
        assert torch.equal(prompted(*given), several)
    finally:
        torch.set_num_threads(threads)


@DTYPES
@torch.no_grad()
def test_large_scores_do_not_overflow_and_nan_stays(dtype: torch.dtype, path: str) -> None:
    x, around, key, value = drawn((30, 2, 16, 5), dtype)
    assert prompted(1000 * x, around, key, value).isfinite().all()
    x[7, 3] = float("nan")
    found = prompted(x, around, key, value)
    assert found[7].isnan().all() and found.isnan().sum() == found.shape[1]


@torch.no_grad()
def test_nothing_is_folded_for_torch_or_with_gradients(path: str) -> None:
    x, around, key, value = drawn((30, 2, 16, 5), torch.float32)
    prompt = folded(around, key, value)
    if path == "torch":
        assert prompt is None
        return
    assert prompt is not None
    with native.using("torch"):
        assert not answer(x, prompt, torch.empty_like(x))
    assert not answer(x.half(), prompt, torch.empty_like(x).half())
    with torch.enable_grad():
        assert folded(around, key.requires_grad_(), value) is None


LEARNED = pytest.mark.parametrize(
    ("count", "heads", "d", "counts"),
    [
        (50, 2, 24, (5, 7, 1)),
        (256, 8, 72, (40, 20)),
        (30, 3, 10, (2, 3, 1, 2)),
        (9, 1, 5, (1,)),
        (37, 5, 7, (3,)),
    ],
)


@DTYPES
@LEARNED
def test_its_gradients_are_those_of_the_definition(
    count: int, heads: int, d: int, counts: tuple[int, ...], dtype: torch.dtype
) -> None:
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    x, around, key, value = drawn((len(counts) * count, heads, d, sum(counts)), dtype)
    x = x.view(len(counts), count, heads * d)
    key, value = (each.transpose(0, 1).flatten(1) for each in (key, value))
    given = [x, *around, key, value]
    for each in given:
        each.requires_grad_()
    with native.using("native"):
        found = learned(x, around, key, value, counts, heads)
    assert found is not None
    wide = [each.detach().double().requires_grad_() for each in given]
    parts = [each.unflatten(1, (heads, d)).transpose(0, 1).split(counts, dim=1) for each in wide[-2:]]
    pictures = zip(wide[0], *parts, strict=True)
    wanted = torch.stack([defined(row, Around(*wide[1:5]), *each) for row, *each in pictures])
    grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3))
    slopes = torch.autograd.grad(found, given, grad.to(dtype))
    wanted_slopes = torch.autograd.grad(wanted, wide, grad.to(dtype).double())
    near = 3e-6 if dtype == torch.float32 else 2e-2
    for one, other in zip((found, *slopes), (wanted, *wanted_slopes), strict=True):
        assert one.shape == other.shape and one.dtype == dtype
        assert (one.double() - other).norm() <= near * other.norm() + 1e-6


@pytest.mark.parametrize(
    ("counts", "tokens", "short"),
    [((7,), 60, True), ((8,), 60, False), ((12, 2), 60, True), ((0, 3), 60, False)],
)
def test_prompts_are_short_where_folding_them_is_fewer_products(
    counts: tuple[int, ...], tokens: int, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    # 2 heads of 8 channels: 2 * 60 m + 16 m products against 60 * 16 a picture.
    assert are_short(counts, tokens, 16, 2) is short
    monkeypatch.setattr(torch, "get_num_threads", lambda: len(counts) + 1)
    assert not are_short(counts, tokens, 16, 2)


def test_nothing_is_learned_folded_by_torch() -> None:
    x, around, key, value = drawn((60, 2, 8, 7), torch.float32)
    key, value = (each.transpose(0, 1).flatten(1).requires_grad_() for each in (key, value))
    with native.using("torch"):
        assert learned(x[None], around, key, value, (7,), 2) is None


@DTYPES
def test_threads_change_no_gradient(dtype: torch.dtype) -> None:
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    x, around, key, value = drawn((90, 3, 16, 9), dtype)
    key, value = (each.transpose(0, 1).flatten(1) for each in (key, value))
    threads = torch.get_num_threads()
    found = []
    for number in (threads, 1):
        torch.set_num_threads(number)
        given = [each.detach().clone().requires_grad_() for each in (x.view(3, 30, 48), key, value)]
        with native.using("native"):
            out = learned(given[0], around, *given[1:], (2, 3, 4), 3)
        assert out is not None
        found.append([out, *torch.autograd.grad(out.float().square().sum(), given)])
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
