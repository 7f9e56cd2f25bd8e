"""The Triton kernels against the float64 definition: in the interpreter, or on a GPU where there is one."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton", reason="triton is not installed")

from lineardit.errors import InputError  # noqa: E402
from lineardit.kernels import operators, triton_attention  # noqa: E402
from lineardit.kernels.linear_attention import linear_attention, linear_attention_state  # noqa: E402
from lineardit.kernels.reference import FEATURE_MAPS, quadratic_linear_attention  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("device"),
    # Triton 3.6 counts so in its interpreter.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
]
CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# On a GPU float32 products are IEEE; what is left is the order of sums.
EXACT = {"rtol": 2e-5, "atol": 2e-5}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(queries: int, keys: int, d: int, e: int) -> list[Tensor]:
    return [randn(2, 3, queries, d, seed=1), randn(2, 3, keys, d, seed=2), randn(2, 3, keys, e, seed=3)]


def on_device(tensors: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [each.to(DEVICE, dtype).requires_grad_() for each in tensors]


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize(
    ("queries", "keys", "d", "e", "masked"),
    [(1, 1, 1, 1, False), (65, 129, 16, 16, True), (70, 31, 5, 33, True), (130, 200, 32, 20, False)],
)
def test_outputs_and_gradients_are_those_of_the_definition(
    name: str, queries: int, keys: int, d: int, e: int, masked: bool
) -> None:
    exact = [each.requires_grad_() for each in inputs(queries, keys, d, e)]
    mask = torch.arange(2 * keys).reshape(2, keys) % 3 != 0 if masked else None
    wanted = quadratic_linear_attention(*exact, feature_map=name, mask=mask)
    direction = randn(*wanted.shape, seed=4)
    given = on_device([each.detach() for each in exact])
    there = None if mask is None else mask.to(DEVICE)
    found = linear_attention(*given, feature_map=name, mask=there, kernel="triton")
    torch.testing.assert_close(found.cpu().double(), wanted, **EXACT)
    pairs = zip(
        torch.autograd.grad(found, given, direction.to(found)),
        torch.autograd.grad(wanted, exact, direction),
        strict=True,
    )
    for one, two in pairs:
        tolerance = 2e-5 * max(1.0, float(two.abs().max()))
        torch.testing.assert_close(one.cpu().double(), two, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype: torch.dtype) -> None:
    given = [each.detach() for each in on_device(inputs(70, 130, 32, 32), dtype)]
    wanted = quadratic_linear_attention(*(each.double() for each in given))
    found = linear_attention(*given, kernel="triton")
    assert found.dtype == dtype
    apart = (found.double() - wanted).abs() / wanted.abs().max()
    assert float(apart.max()) < 2 * torch.finfo(dtype).eps


def test_tokens_of_any_stride_are_read_where_they_lie() -> None:
    packed = randn(2, 70, 3, 3, 20, seed=5).to(DEVICE, torch.float32)  # b n three heads d
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    assert not key.is_contiguous()
    found = linear_attention(query, key, value, kernel="triton")
    wanted = linear_attention(query, key, value, kernel="torch")
    torch.testing.assert_close(found, wanted, **EXACT)


def test_what_lies_beyond_a_tensor_is_never_used() -> None:
    poisoned = torch.full((3, 2, 3, 80, 24), torch.nan, device=DEVICE)
    views = [each[:, :, :70, :20] for each in poisoned]
    for view, values in zip(views, inputs(70, 70, 20, 20), strict=True):
        view.copy_(values)
    given = [each.detach().requires_grad_() for each in views]
    found = linear_attention(*given, kernel="triton")
    gradients = torch.autograd.grad(found.square().sum(), given)
    assert found.isfinite().all() and all(each.isfinite().all() for each in gradients)


def test_a_row_without_any_key_is_zero_and_so_are_its_gradients() -> None:
    given = on_device(inputs(5, 7, 8, 8))
    mask = torch.tensor([[True], [False]], device=DEVICE).expand(2, 7)
    found = linear_attention(*given, mask=mask, kernel="triton")
    gradients = torch.autograd.grad(found.sum(), given)
    assert not found[1].any() and not any(each[1].any() for each in gradients)
    assert found[0].any()


@pytest.mark.parametrize("lie", ["expanded", "turned", "every other"])
def test_masks_of_any_stride_are_read_where_they_lie(lie: str) -> None:
    given = on_device(inputs(5, 70, 8, 8))
    mask = randn(2, 70, seed=9).to(DEVICE) > 0
    if lie == "expanded":
        mask = mask[:, :1].expand(2, 70)
    else:
        mask = mask.t().contiguous().t() if lie == "turned" else mask.repeat_interleave(2, dim=1)[:, ::2]
    assert not mask.is_contiguous()
    found = linear_attention(*given, mask=mask, kernel="triton")
    wanted = linear_attention(*given, mask=mask, kernel="torch")
    torch.testing.assert_close(found, wanted, **EXACT)
    direction = torch.cos(wanted.detach())
    for one, two in zip(
        *(torch.autograd.grad(each, given, direction) for each in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(one, two, **EXACT)


def test_states_of_chunks_add_up_and_gradients_flow_through_them() -> None:
    query, key, value = on_device(inputs(9, 140, 16, 24))
    whole = linear_attention(query, key, value, kernel="triton")
    first = linear_attention_state(key[:, :, :50], value[:, :, :50], kernel="triton")
    both = linear_attention(query, key[:, :, 50:], value[:, :, 50:], state=first, kernel="triton")
    torch.testing.assert_close(both, whole, **EXACT)
    direction = torch.ones_like(whole)
    for one, two in zip(
        torch.autograd.grad(both, (query, key, value), direction),
        torch.autograd.grad(whole, (query, key, value), direction),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (1, 64), (1, 65), (6, 1000), (700, 40)])
def test_every_token_belongs_to_exactly_one_program(rows: int, count: int) -> None:
    splits, share = triton_attention.split(rows, count, 64, torch.device("cpu"))
    assert share % 64 == 0
    taken = itertools.chain.from_iterable(
        range(split * share, min((split + 1) * share, count)) for split in range(splits)
    )
    assert list(taken) == list(range(count))
    assert splits == 1 or (splits - 1) * share < count


def test_the_operators_are_registered_as_torch_wants_them() -> None:
    query, key, value = on_device(inputs(9, 20, 8, 4))
    mask = torch.ones(2, 20, dtype=torch.bool, device=DEVICE)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operators.linear_attention_state, (key, value, mask, "relu"), test_utils=checks)
    memory, mass = linear_attention_state(key, value, kernel="triton")
    torch.library.opcheck(
        operators.linear_attention_apply,
        (query, memory.detach().requires_grad_(), mass.detach().requires_grad_(), "elu1"),
        test_utils=checks,
    )


def test_torch_compile_takes_the_operators_whole() -> None:
    given = on_device(inputs(9, 20, 8, 4))

    def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        state = operators.linear_attention_state(key, value, None, "relu")
        return 2 * operators.linear_attention_apply(query, *state, "relu")

    compiled = torch.compile(attended, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(*given), attended(*given)
    torch.testing.assert_close(found, wanted)
    for one, two in zip(
        torch.autograd.grad(found.sum(), given), torch.autograd.grad(wanted.sum(), given), strict=True
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.usefixtures("unchecked")
def test_kernels_that_agree_with_the_definition_are_not_refused() -> None:
    with torch.inference_mode():  # as whoever draws asks
        assert operators.refusal(DEVICE, 32) is None


@pytest.mark.usefixtures("unchecked")
def test_heads_that_are_too_large_for_a_gpu_are_refused_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [operators.block_of(head) for head in (1, 16, 17, 32, 72, 128)] == [16, 16, 32, 32, 128, 128]

    class Small:
        state_backward = staticmethod(triton_attention.state_backward)
        applied = staticmethod(triton_attention.applied)
        applied_backward = staticmethod(triton_attention.applied_backward)

        @staticmethod
        def state(key: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
            if operators.block_of(key.shape[-1]) > 32:
                raise RuntimeError("out of resource: shared memory")
            return triton_attention.state(key, *given)

    monkeypatch.setattr(operators, "_kernels", lambda: Small)
    assert operators.refusal(DEVICE, 32) is operators.refusal(DEVICE, 16) is None
    refused = operators.refusal(DEVICE, 64)
    assert refused is not None and "out of resource: shared memory" in refused


@pytest.mark.usefixtures("unchecked")
def test_kernels_are_not_refused_for_being_checked_inside_a_checkpointed_block() -> None:
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    reasons: list[str | None] = []

    def differentiated(device: torch.device) -> float:
        x = torch.ones(7, device=device, requires_grad=True)
        torch.autograd.grad(x.exp().sin().sum(), x)
        return 0.0

    def block(x: Tensor) -> Tensor:
        if not reasons:  # as whoever keeps the answer
            reasons.append(operators.refused(differentiated, CPU, "it runs on torch instead"))
        return (x * weight).exp()

    x = torch.tensor([0.5, -1.0], requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    assert reasons == [None] and not operators.REFUSALS
    torch.testing.assert_close(x.grad, weight.detach() * (x * weight).exp().detach())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda *given: 1.01 * triton_attention.applied(*given), "1.0e-02 from the definition"),
        (lambda *given: [][0], "do not run here: .*list index out of range"),
    ],
)
def test_kernels_that_are_wrong_or_break_are_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, fault: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:

    class Broken:
        state = staticmethod(triton_attention.state)
        state_backward = staticmethod(triton_attention.state_backward)
        applied = staticmethod(fault)
        applied_backward = staticmethod(triton_attention.applied_backward)

    monkeypatch.setattr(operators, "_kernels", lambda: Broken)
    refused = operators.refusal(DEVICE, 32)
    assert refused is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refused)
    assert "runs on torch instead" in caplog.text
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FakeTensorMode():
        assert not operators.runs_triton(torch.empty(1, 1, 4, 8, device="cuda"), 8)
        operators.REFUSALS.clear()
        assert operators.runs_triton(torch.empty(1, 1, 4, 8, device="cuda"), 8), "nothing was refused"


def test_what_the_kernels_do_not_take_is_refused_by_name() -> None:
    query, key, value = inputs(3, 4, 8, 8)
    with pytest.raises(InputError, match="not 8 in torch.float64"):
        linear_attention(query, key, value, kernel="triton")
    wide = torch.zeros(1, 1, 3, 129)
    with pytest.raises(InputError, match="up to 128 channels in float32 or less, not 129"):
        linear_attention(wide, wide, wide, kernel="triton")


@pytest.mark.gpu
def test_a_gpu_takes_the_kernels_by_itself() -> None:
    assert operators.runs_triton(torch.zeros(1, 1, 4, 8, device="cuda"), 8)
