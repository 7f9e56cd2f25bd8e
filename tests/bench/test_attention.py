"""`lineardit bench attention`: right before fast, and honest about what was not measured."""

import math
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from lineardit.bench import attention
from lineardit.bench.attention import (
    ARTICLE,
    FUSED,
    METHODS,
    SHIPPED,
    TRITON,
    WRITTEN_OUT,
    Measurement,
    Method,
    Shape,
    check_gradients,
    check_rows,
    crossover,
    exponent,
    linear_by_einsum,
    measure_attention,
    methods_on,
    softmax_written_out,
)
from lineardit.bench.attention_report import attention_page, attention_plot
from lineardit.bench.clock import Cost
from lineardit.errors import InputError, LineardiTError

CPU = torch.device("cpu")
SHAPE = Shape(2, 3, 37, 5)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def test_softmax_written_out_is_torchs_own() -> None:
    query, key, value = normal(2, 3, 7, 5), normal(2, 3, 11, 5), normal(2, 3, 11, 13)
    right = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(softmax_written_out(query, key, value), right, rtol=0.0, atol=1e-12)


def test_the_articles_einsums_are_linear_attention() -> None:
    query, key, value = normal(2, 3, 7, 5), normal(2, 3, 11, 5), normal(2, 3, 11, 13)
    weights = query.relu() @ key.relu().mT
    right = weights @ value / (weights.sum(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(linear_by_einsum(query, key, value), right, rtol=0.0, atol=1e-12)


def test_the_articles_einsums_hold_many_tokens_in_float16() -> None:
    given = [normal(1, 1, 9000, 64) for _ in range(3)]
    wanted = linear_by_einsum(*given)
    found = linear_by_einsum(*(each.half() for each in given))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.to(wanted), wanted, rtol=0.0, atol=2e-2 * float(wanted.abs().max()))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("dtype", attention.TOLERANCES)
def test_what_is_timed_is_right(method: Method, dtype: torch.dtype) -> None:
    check_gradients(method, CPU, dtype, head_dim=16)
    inputs = [normal(*SHAPE).to(dtype) for _ in range(3)]
    check_rows(method, *inputs, method.attend(*inputs))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, k, v: SHIPPED.attend(q, k, v) * 1.001,
        lambda q, k, v: SHIPPED.attend(q, k, v) * math.nan,
        lambda q, k, v: SHIPPED.attend(q, k.detach() + 0 * k, v),
    ],
    ids=["a thousandth too large", "NaN", "without the gradient of the keys"],
)
def test_no_speed_is_reported_of_what_is_wrong(wrong: attention.Attention) -> None:
    method = SHIPPED._replace(attend=wrong)
    with pytest.raises(LineardiTError, match=r"linear, as shipped: .* is wrong, so its speed is not"):
        list(measure_attention([SHAPE], CPU, torch.float32, 0.0, [method]))


def test_triton_is_measured_where_there_is_a_gpu() -> None:
    assert methods_on(CPU) == METHODS
    assert methods_on(torch.device("cuda")) == (*METHODS, TRITON)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", attention.TOLERANCES)
def test_triton_is_timed_only_because_it_is_right(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    (row,) = measure_attention([SHAPE._replace(head_dim=32)], device, dtype, 0.1, [TRITON])
    assert row.forward is not None and row.training is not None and row.forward.peak


def test_an_error_in_the_last_token_alone_is_found() -> None:
    inputs = [normal(*SHAPE).float() for _ in range(3)]
    output = SHIPPED.attend(*inputs)
    output[-1, -1, -1] += 0.1
    with pytest.raises(LineardiTError, match="output at 37 tokens is off by"):
        check_rows(SHIPPED, *inputs, output)


def test_a_dtype_without_a_tolerance_is_refused() -> None:
    with pytest.raises(InputError, match="is not measured. Use fp32, bf16 or fp16"):
        next(measure_attention([SHAPE], CPU, torch.float64, 0.0))


def test_what_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "measure", lambda work, device, budget: Cost(5.0, 1, 0))
    shapes = [SHAPE, SHAPE._replace(tokens=74)]
    rows = list(measure_attention(shapes, CPU, torch.float32, 15.0, [FUSED, SHIPPED]))
    assert [(row.method, row.forward is None) for row in rows] == [
        (FUSED, False),
        (FUSED, True),
        (SHIPPED, False),
        (SHIPPED, False),
    ]
    assert rows[1].left_out == "about 20 s a call, over 15 s"


def test_what_is_left_out_at_one_size_is_so_at_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "measure", lambda work, device, budget: Cost(5.0, 1, 0))
    shapes = [SHAPE._replace(tokens=tokens) for tokens in (37, 74, 148)]
    rows = list(measure_attention(shapes, CPU, torch.float32, 15.0, [FUSED]))
    assert [row.left_out for row in rows] == ["", *["about 20 s a call, over 15 s"] * 2]


def test_what_does_not_fit_the_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, tensor = 4 * 2 * 3 * 37**2, 4 * math.prod(SHAPE)
    monkeypatch.setattr(attention, "available_memory", lambda device: int((3 * weights + 8 * tensor) / 0.9))
    forward_only, both = measure_attention([SHAPE], CPU, torch.float32, 0.0, [WRITTEN_OUT, FUSED])
    assert forward_only.forward is not None and forward_only.training is None
    assert forward_only.left_out.startswith("backward: needs 0 GB, free are 0 GB")
    assert both.forward is not None and both.training is not None and both.left_out == ""


def test_the_crossover_lies_where_the_lines_meet() -> None:
    sizes = [2**power for power in range(8, 15)]
    slow, fast = {n: 1e-9 * n**2 for n in sizes}, {n: 1e-6 * n for n in sizes}
    assert crossover(slow, fast) == pytest.approx(1000)
    assert crossover(fast, slow) is None
    assert crossover({n: 1.0 for n in sizes}, {n: 0.5 for n in sizes}) == 256
    assert crossover({}, fast) is None


def test_being_faster_for_a_while_is_no_crossover() -> None:
    slow, fast = dict.fromkeys([1, 2, 4, 8], 1.0), {1: 0.5, 2: 2.0, 4: 0.5, 8: 0.1}
    assert crossover(slow, fast) == pytest.approx(math.sqrt(8))


def test_exponents_are_those_of_powers() -> None:
    assert exponent({n: 3 * n**1.5 for n in (10, 40, 700)}) == pytest.approx(1.5)
    assert exponent({10: 1.0}) is None


def measured(method: Method, tokens: int, seconds: float | None, left_out: str = "") -> Measurement:
    cost = None if seconds is None else Cost(seconds, 3, 2**25)
    return Measurement(method, ARTICLE._replace(batch=1, tokens=tokens), cost, cost, left_out)


def page(**changes: Any) -> str:
    sweep = [measured(SHIPPED, n, 1e-6 * n) for n in (256, 8192, 16384)]
    sweep += [measured(FUSED, n, 1e-9 * n**2) for n in (256, 8192)]
    sweep.append(measured(FUSED, 16384, None, "about 99 s a call, over 10 s"))
    article = [measured(WRITTEN_OUT, 4096, 3.0), measured(SHIPPED, 4096, 0.5)]
    return attention_page("A machine", **({"article": article, "sweep": sweep} | changes))


def test_the_page_says_what_was_found() -> None:
    text = page()
    assert "| linear, as shipped | 500 | 500 | 32 | 32 | 6.00x | - |" in text
    assert "| 8,192 | softmax, fused | 67.1 | 67.1 | 32 | 32 |" in text
    assert "- softmax, fused, forward, from 16,384 tokens: about 99 s a call, over 10 s" in text
    assert "linear, as shipped: time grows with tokens to the power of forward 1.00 (2 sizes)" in text
    assert "softmax, fused: time grows" not in text
    assert "linear, as shipped against softmax, fused, forward: faster from about 1,000 tokens on." in text


def test_the_page_leaves_out_what_was_not_asked_for() -> None:
    assert "The article's shape" not in page(article=[])


def test_the_plot_has_a_line_for_each_method_measured() -> None:
    svg = attention_plot([measured(SHIPPED, 256, 1.0), measured(FUSED, 256, 2.0)])
    lines = list(ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 2
