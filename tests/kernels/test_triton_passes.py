"""The Triton passes against float64 definitions: in the interpreter, or on a GPU where there is one."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton", reason="triton is not installed")

from lineardit.config.models import TransformerConfig  # noqa: E402
from lineardit.kernels import native, pass_operators, passes, triton_passes  # noqa: E402
from lineardit.transformer.model import Transformer  # noqa: E402

# Triton 3.6 counts so in its interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
EPS = 1e-6
WIDE = torch.float32


@pytest.fixture
def taken(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes take the kernels wherever these run."""
    monkeypatch.setattr(pass_operators, "runs_triton", lambda *_: True)


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """What a kernel leaves unwritten is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def drawn(device: torch.device, *shapes: tuple[int, ...], dtype: torch.dtype = WIDE) -> list[Tensor]:
    return [randn(*shape).to(device, dtype).requires_grad_(dtype == WIDE) for shape in shapes]


def steered(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor]:
    apart = x - x.mean(-1, keepdim=True)
    deviation = (apart.square().mean(-1, keepdim=True) + EPS).sqrt()
    return (apart / deviation * (1 + scale) + shift,)


def added_steered(x: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return x + y, *steered(x + y, shift, scale)


def gated(x: Tensor, weight: Tensor, bias: Tensor, activate: bool) -> tuple[Tensor]:
    """Tap by tap."""
    height, width = x.shape[1:3]
    around = functional.pad(x / (1 + (-x).exp()) if activate else x, (0, 0, 1, 1, 1, 1))
    near = bias + torch.stack(
        [
            around[:, dy : dy + height, dx : dx + width] * weight[:, 0, dy, dx]
            for dy in range(3)
            for dx in range(3)
        ]
    ).sum(0)
    content, gate = near.chunk(2, dim=-1)
    return (content * gate / (1 + (-gate).exp()),)


def agree(
    run: Callable[..., tuple[Tensor, ...]],
    definition: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor],
    device: torch.device,
) -> None:
    """Outputs, and gradients of everything, in float32 as in float64."""
    exact = [each.requires_grad_() for each in inputs]
    given = [among_nan(each, device).requires_grad_() for each in inputs]
    found, wanted = run(*given), definition(*exact)
    directions = [randn(*each.shape) for each in wanted]
    wanted += torch.autograd.grad(wanted, exact, directions)
    found += torch.autograd.grad(found, given, [each.to(device, WIDE) for each in directions])
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        assert one.shape == two.shape
        tolerance = 2e-5 * max(1.0, float(two.detach().abs().max()))
        torch.testing.assert_close(one.detach().cpu().double(), two.detach(), rtol=1e-4, atol=tolerance)


def among_nan(tensor: Tensor, device: torch.device) -> Tensor:
    """The same numbers in float32, with NaN before and behind them in memory."""
    room = torch.full((tensor.numel() + 400,), torch.nan, device=device)
    inside = room[200 : 200 + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor.detach()).detach()


@pytest.mark.usefixtures("unwritten_is_nan")
@pytest.mark.parametrize(("b", "tokens", "width"), [(1, 1, 1), (2, 37, 20), (3, 5, 129), (1, 300, 64)])
def test_normalisation_with_modulation_is_that_of_the_definition(
    b: int, tokens: int, width: int, device: torch.device
) -> None:
    x, tables = randn(b, tokens, width), [randn(b, 1, width), randn(b, 1, width)]
    agree(lambda *given: (pass_operators.steer(*given, EPS, WIDE),), steered, [x, *tables], device)
    y = randn(tokens, b, width).transpose(0, 1).contiguous()
    agree(lambda *given: pass_operators.add_steer(*given, EPS, WIDE), added_steered, [x, y, *tables], device)


@pytest.mark.usefixtures("unwritten_is_nan")
@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize(
    ("b", "height", "width", "channels"), [(1, 1, 1, 1), (2, 3, 5, 7), (1, 9, 4, 65), (3, 6, 11, 3)]
)
def test_the_gated_convolution_is_that_of_the_definition(
    b: int, height: int, width: int, channels: int, activate: bool, device: torch.device
) -> None:
    both = 2 * channels
    inputs = [randn(b, height, width, both), randn(both, 1, 3, 3), randn(both)]
    agree(
        lambda *given: (pass_operators.gated_convolution(*given, activate),),
        lambda *exact: gated(*exact, activate),
        inputs,
        device,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype: torch.dtype, device: torch.device) -> None:
    rows, table = (2, 7, 48), (2, 1, 48)
    x, y, shift, scale = drawn(device, rows, rows[::-1], table, table, dtype=dtype)
    y = y.transpose(0, 2)[:2]
    total, out = pass_operators.add_steer(x, y, shift, scale, EPS, dtype)
    assert total.dtype == out.dtype == dtype
    near(total, (x + y).double())
    near(out, *steered((x + y).double(), shift.double(), scale.double()))
    picture, weight, bias = drawn(device, (1, 5, 6, 20), (20, 1, 3, 3), (20,), dtype=dtype)
    found = pass_operators.gated_convolution(picture, weight, bias, True)
    assert found.dtype == dtype
    near(found, *gated(picture.double(), weight.double(), bias.double(), True))


def near(found: Tensor, wanted: Tensor) -> None:
    apart = (found.double() - wanted).abs().max() / wanted.abs().max()
    assert float(apart) < 2 * torch.finfo(found.dtype).eps  # the interpreter cuts bfloat16 off


def test_a_branch_of_half_precision_is_added_to_float32_and_gives_its_own_gradient(
    device: torch.device,
) -> None:
    x, shift, scale = drawn(device, (2, 9, 32), (2, 1, 32), (2, 1, 32))
    y = randn(2, 9, 32).to(device, torch.bfloat16).requires_grad_()
    total, out = pass_operators.add_steer(x, y, shift, scale, EPS, torch.bfloat16)
    assert (total.dtype, out.dtype) == (WIDE, torch.bfloat16)
    by_x, by_y = torch.autograd.grad(total.sum() + out.float().square().sum(), (x, y))
    assert by_y.dtype == torch.bfloat16 and torch.equal(by_y, by_x.bfloat16())


def test_tables_may_lie_in_a_larger_one_and_belong_to_each_picture(device: torch.device) -> None:
    table = randn(3, 6, 40).to(device, WIDE)
    shift, scale = table.chunk(6, dim=1)[1:3]
    assert not shift.is_contiguous()
    x = randn(3, 8, 40).to(device, WIDE)
    found = pass_operators.steer(x, shift, scale, EPS, WIDE)
    wanted = steered(x.double(), shift.double(), scale.double())[0]
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5)
    assert torch.equal(pass_operators.steer(x, shift, scale.contiguous(), EPS, WIDE), found)
    one = pass_operators.steer(x, shift[:1].expand(3, 1, -1), scale[:1].expand(3, 1, -1), EPS, WIDE)
    assert torch.equal(one[0], found[0]) and not torch.equal(one[1], found[1])


@pytest.mark.usefixtures("taken")
def test_a_transformer_computes_and_learns_the_same_with_the_kernels(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(
        latent_channels=4, depth=2, width=32, head_dim=16, cross_head_dim=16, text_width=24
    )
    model = Transformer(config).to(device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    latents, text = drawn(device, (2, 4, 5, 6), (2, 7, 24))
    given = latents, torch.tensor([0.3, 0.8], device=device), text
    called: list[str] = []
    for name in ("steer", "gated", "steer_backward", "gated_backward"):
        kernel = getattr(triton_passes, name)

        def seen(*each: Any, name: str = name, kernel: Any = kernel) -> Any:
            called.append(name)
            return kernel(*each)

        monkeypatch.setattr(triton_passes, name, seen)
    found = model(*given)
    gradients = torch.autograd.grad(found.square().sum(), [*model.parameters()])
    assert [called.count(name) for name in ("steer", "gated")] == [5, 2]
    assert [called.count(name) for name in ("steer_backward", "gated_backward")] == [5, 2]
    monkeypatch.setattr(pass_operators, "runs_triton", lambda *_: False)
    wanted = model(*given)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    for one, two in zip(
        gradients, torch.autograd.grad(wanted.square().sum(), [*model.parameters()]), strict=True
    ):
        tolerance = 1e-4 * max(1.0, float(two.abs().max()))
        torch.testing.assert_close(one, two, rtol=1e-3, atol=tolerance)


@pytest.mark.usefixtures("taken")
def test_under_autocast_what_goes_into_products_is_rounded_to_it(device: torch.device) -> None:
    x, shift, scale = drawn(device, (2, 9, 32), (2, 1, 32), (2, 1, 32))
    assert passes.steered(x, shift, scale, EPS).dtype == WIDE
    with torch.autocast(device.type, torch.bfloat16):
        assert passes.steered(x, shift, scale, EPS).dtype == torch.bfloat16
        total, out = passes.added_steered(x, x.bfloat16(), shift, scale, EPS)
    assert (total.dtype, out.dtype) == (WIDE, torch.bfloat16)
    assert passes.steered(x.bfloat16(), shift, scale, EPS).dtype == WIDE, "as torch promotes it"


def test_the_operators_are_registered_as_torch_wants_them(device: torch.device) -> None:
    x, y, shift, scale = drawn(device, (2, 5, 12), (2, 5, 12), (2, 1, 12), (2, 1, 12))
    convolved = drawn(device, (1, 3, 4, 6), (6, 1, 3, 3), (6,))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator, given in (
        (pass_operators.steer, (x, shift, scale, EPS, torch.bfloat16)),
        (pass_operators.add_steer, (x, y, shift, scale, EPS, WIDE)),
        (pass_operators.gated_convolution, (*convolved, True)),
    ):
        torch.library.opcheck(operator, given, test_utils=checks)


def test_torch_compile_takes_the_operators_whole(device: torch.device) -> None:
    given = drawn(device, (2, 6, 12), (2, 6, 12), (2, 1, 12), (2, 1, 12))
    weight, bias = drawn(device, (12, 1, 3, 3), (12,))

    def run(x: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        total, out = pass_operators.add_steer(x, y, shift, scale, EPS, WIDE)
        picture = torch.unflatten(pass_operators.steer(total + out, shift, scale, EPS, WIDE), 1, (2, 3))
        return 2 * pass_operators.gated_convolution(picture, weight, bias, True)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(*given), run(*given)
    torch.testing.assert_close(found, wanted)
    for one, two in zip(
        torch.autograd.grad(found.sum(), given), torch.autograd.grad(wanted.sum(), given), strict=True
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.usefixtures("unchecked")
def test_kernels_that_agree_with_the_definitions_are_not_refused(device: torch.device) -> None:
    with torch.inference_mode():  # as whoever draws asks
        assert pass_operators.refusal(device) is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", ["steer", "steer_backward", "gated", "gated_backward"])
def test_kernels_that_are_wrong_are_refused(
    wrong: str, device: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = getattr(triton_passes, wrong)

    def faulty(*given: Any) -> Any:
        out = kernel(*given)
        return 1.01 * out if isinstance(out, Tensor) else (*out[:-1], 1.01 * out[-1])

    monkeypatch.setattr(triton_passes, wrong, faulty)
    refused = pass_operators.refusal(device)
    assert refused is not None and "from the definition" in refused
    assert "passes run on torch instead" in caplog.text


def test_on_a_cpu_and_where_torch_is_asked_for_the_kernels_are_left_alone() -> None:
    assert not pass_operators.runs_triton(torch.zeros(1, 2, 3))
    if torch.cuda.is_available():
        x = torch.zeros(1, 2, 3, device="cuda")
        assert pass_operators.runs_triton(x) and not pass_operators.runs_triton(x.double())
        with native.using("torch"):
            assert not pass_operators.runs_triton(x)
