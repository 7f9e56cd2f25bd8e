"""LinearDiT and the softmax DiT: their definitions, what comes out for what goes in, and what is refused."""

import math
from itertools import product
from typing import Any, TypeVar

import jaxtyping
import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import lineardit
from lineardit.config.dit import DITS, DiTConfig, LinearDiTConfig, SoftmaxDiTConfig, dit_preset
from lineardit.config.presets import differing
from lineardit.diffusion.guidance import guided
from lineardit.diffusion.objective import Denoising
from lineardit.diffusion.paths import DDPMPath
from lineardit.diffusion.predictions import NoisePrediction
from lineardit.errors import ConfigError, InputError, ShapeError
from lineardit.kernels.reference import quadratic_linear_attention
from lineardit.transformer.dit import DiT, LinearDiT, SoftmaxDiT
from lineardit.transformer.dit_block import DiTBlock

M = TypeVar("M", bound=nn.Module)
KINDS = [LinearDiT, SoftmaxDiT]
# 3 channels in patches of 2; every other size is another number.
SIZES = {"input_dim": 12, "hidden_size": 28, "num_layers": 2, "num_heads": 7, "num_classes": 5}
EQUAL = {"rtol": 0.0, "atol": 1e-5}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(kind: type[DiT] = LinearDiT, *, trained: bool = True, **changes: object) -> DiT:
    """With `trained`, nothing is zero any more."""
    torch.manual_seed(0)
    network = kind(differing(kind.config_type(**SIZES), **changes)).eval()
    return moved(network) if trained else network


def moved(network: M) -> M:
    for number, parameter in enumerate(network.parameters()):
        parameter.data += 0.1 * randn(*parameter.shape, seed=number)
    return network


TOKENS, IMAGES = randn(2, 11, 12, seed=1), randn(2, 3, 10, 14, seed=2)
TIMES, LABELS = torch.tensor([3, 742]), torch.tensor([4, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 11, 12), (2, 1, 12), (2, 12), (2, 3, 10, 14), (2, 3, 2, 2)])
@torch.no_grad()
def test_whatever_goes_in_comes_out_in_its_shape(kind: type[DiT], shape: tuple[int, ...]) -> None:
    noise = model(kind)(randn(*shape, seed=1), TIMES, LABELS)
    assert noise.shape == shape and noise.isfinite().all() and noise.std() > 0


@torch.no_grad()
def test_a_row_is_one_token() -> None:
    network = model()
    assert torch.equal(network(TOKENS[:, 0], TIMES, LABELS), network(TOKENS[:, :1], TIMES, LABELS).squeeze(1))


@torch.no_grad()
def test_an_image_is_its_patches_row_by_row() -> None:
    network = model(position="none")
    by_hand = torch.stack(
        [
            IMAGES[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].permute(0, 2, 3, 1).flatten(1)
            for i, j in product(range(5), range(7))
        ],
        dim=1,
    )
    noise, tokens = network(IMAGES, TIMES, LABELS), network(by_hand, TIMES, LABELS)
    token = tokens[:, 3 * 7 + 4].view(2, 2, 2, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(noise[:, :, 6:8, 8:10], token, **EQUAL)


@torch.no_grad()
def test_a_learned_sigma_doubles_what_comes_out() -> None:
    network = model(learned_sigma=True)
    tokens = network(TOKENS, TIMES)
    assert tokens.shape == (2, 11, 24) and network(IMAGES, TIMES).shape == (2, 6, 10, 14)
    assert LinearDiT(differing(network.config, num_layers=1))(TOKENS[:, 0], TIMES).shape == (2, 24)
    # The noise is the first half in both forms: one token is one patch.
    network = model(learned_sigma=True, position="none")
    patch = IMAGES[:, :, :2, :2]
    out = network(patch.permute(0, 2, 3, 1).reshape(2, 1, 12), TIMES)[:, 0, :12]
    torch.testing.assert_close(network(patch, TIMES)[:, :3].permute(0, 2, 3, 1).flatten(1), out, **EQUAL)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_fresh_model_says_zero_and_its_blocks_do_nothing(kind: type[DiT]) -> None:
    network = model(kind, trained=False)
    assert torch.equal(network(TOKENS, TIMES, LABELS), torch.zeros_like(TOKENS))
    assert not any(p.any() for layer in (network.to_table, network.to_noise) for p in layer.parameters())
    for embedding in (network.time.first, network.time.second, network.classes):
        assert embedding.weight.std().item() == pytest.approx(0.02, rel=0.2)
    x, condition = randn(2, 11, 28, seed=3), randn(2, 28, seed=4)
    assert all(torch.equal(block(x, condition), x) for block in network.blocks)
    build = LinearDiT.build_linear_dit_block if kind is LinearDiT else SoftmaxDiT.build_dit_block
    alone = build(hidden_size=28, num_heads=7, mlp_ratio=2.0)
    assert torch.equal(alone(x, condition), x) and alone.feed_forward.expand.out_features == 56


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_open_the_zeros_and_then_gradients_reach_every_weight(kind: type[DiT]) -> None:
    # The output opens in the first step, the gates in the second: both start at zero and hide the rest.
    network = model(kind, trained=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    labels = torch.tensor([4, 0, 1, 2, 3, 5])
    tokens = randn(6, 11, 12, seed=1)
    silent = []
    for _ in range(3):
        optimizer.zero_grad()
        (network(tokens, torch.arange(6) * 150, labels) - tokens).square().sum().backward()
        silent.append([name for name, p in network.named_parameters() if not p.grad.any()])
        optimizer.step()
    assert len(silent[0]) == len(list(network.parameters())) - 2
    assert not silent[2]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_positions_permuting_tokens_permutes_the_noise(kind: type[DiT]) -> None:
    order = torch.randperm(11, generator=torch.Generator().manual_seed(5))
    network = model(kind, position="none")
    noise = network(TOKENS, TIMES, LABELS)
    torch.testing.assert_close(network(TOKENS[:, order], TIMES, LABELS), noise[:, order], **EQUAL)
    placed = model(kind)
    difference = placed(TOKENS[:, order], TIMES, LABELS) - placed(TOKENS, TIMES, LABELS)[:, order]
    assert difference.abs().max() > 1e-2


@torch.no_grad()
def test_an_images_rows_differ_from_its_columns() -> None:
    network = model()
    turned = network(IMAGES.transpose(2, 3), TIMES).transpose(2, 3)
    assert (turned - network(IMAGES, TIMES)).abs().max() > 1e-2
    flat = network(torch.ones(2, 3, 10, 14), TIMES)[:, :, ::2, ::2].flatten(2)
    assert len(torch.unique(flat[0, 0])) == 35


def normed(y: Tensor) -> Tensor:
    return (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()


@pytest.mark.parametrize("feature_map", ["elu1", "relu", "softmax"])
@torch.no_grad()
def test_a_block_is_its_definition_in_float64(feature_map: str) -> None:
    config: DiTConfig = SoftmaxDiTConfig(**SIZES)
    if feature_map != "softmax":
        config = LinearDiTConfig(**SIZES, feature_map=feature_map)
    block = moved(DiTBlock(config)).double()
    x, condition = randn(2, 11, 28, seed=3).double(), randn(2, 28, seed=4).double()
    silu = condition / (1 + (-condition).exp())
    table = (silu @ block.to_table.weight.T + block.to_table.bias).view(2, 6, 28)
    shift, scale, gate, last_shift, last_scale, last_gate = table.split(1, dim=1)

    steered = normed(x) * (1 + scale) + shift
    qkv = steered @ block.attention.to_qkv.weight.T + block.attention.to_qkv.bias
    query, key, value = (part.view(2, 11, 7, 4).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    if feature_map == "softmax":
        mixed = (query @ key.transpose(-1, -2) / 2).softmax(-1) @ value
    else:
        mixed = quadratic_linear_attention(query, key, value, feature_map=feature_map)
    expected = x + gate * block.attention.to_out(mixed.transpose(1, 2).reshape(2, 11, 28))
    hidden = block.feed_forward.expand(normed(expected) * (1 + last_scale) + last_shift)
    hidden = hidden / 2 * (1 + (math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)).tanh())
    expected = expected + last_gate * block.feed_forward.contract(hidden)
    torch.testing.assert_close(block(x, condition), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_softmax_dit_is_that_of_diffusers() -> None:
    theirs = DiTTransformer2DModel(
        num_attention_heads=7,
        attention_head_dim=4,
        in_channels=3,
        num_layers=2,
        sample_size=10,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    ours = model(SoftmaxDiT)
    state = ours.state_dict()
    renamed = {
        "pos_embed.proj.weight": state["to_tokens.weight"].view(28, 2, 2, 3).permute(0, 3, 1, 2),
        "pos_embed.proj.bias": state["to_tokens.bias"],
    }
    pairs = {"proj_out_1": "to_table", "proj_out_2": "to_noise"}
    for i in range(2):
        there, here = f"transformer_blocks.{i}", f"blocks.{i}"
        # Each of their blocks embeds time and class anew, with the same weights.
        renamed[f"{there}.norm1.emb.class_embedder.embedding_table.weight"] = state["classes.weight"]
        for part in ("weight", "bias"):
            qkv = state[f"{here}.attention.to_qkv.{part}"].chunk(3)
            renamed |= {
                f"{there}.attn1.to_{name}.{part}": value for name, value in zip("qkv", qkv, strict=True)
            }
        pairs |= {
            f"{there}.norm1.emb.timestep_embedder.linear_1": "time.first",
            f"{there}.norm1.emb.timestep_embedder.linear_2": "time.second",
            f"{there}.norm1.linear": f"{here}.to_table",
            f"{there}.attn1.to_out.0": f"{here}.attention.to_out",
            f"{there}.ff.net.0.proj": f"{here}.feed_forward.expand",
            f"{there}.ff.net.2": f"{here}.feed_forward.contract",
        }
    for there, here in pairs.items():
        renamed |= {f"{there}.{part}": state[f"{here}.{part}"] for part in ("weight", "bias")}
    theirs.load_state_dict(renamed)
    for block in theirs.transformer_blocks:
        # DiT divides by 128 frequencies; diffusers by 127.
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    images = randn(2, 3, 10, 10, seed=2)
    expected = theirs(images, timestep=TIMES, class_labels=LABELS).sample
    torch.testing.assert_close(ours(images, TIMES, LABELS), expected, **EQUAL)


@pytest.mark.parametrize("kind", KINDS)
def test_sixty_steps_teach_it_what_the_noise_is(kind: type[DiT]) -> None:
    network = model(kind, trained=False)
    objective = Denoising(NoisePrediction(DDPMPath.linear()))
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 5
    images = randn(5, 3, 4, 4, seed=9)[labels]
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        dropped = network.drop_labels(labels, 0.1, generator)
        loss = objective.loss(lambda x, t, y=dropped: network(x, t, y), images, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.1) and sum(losses[-10:]) < 10 * 0.35


@torch.no_grad()
def test_guidance_leads_from_the_null_class_to_the_class() -> None:
    network = model()
    without, null = network(TOKENS, TIMES), torch.full((2,), network.null_class)
    assert network.null_class == 5
    assert torch.equal(network(TOKENS, TIMES, null), without)
    conditional = network(TOKENS, TIMES, LABELS)
    assert (conditional - without).abs().max() > 1e-2
    pair = guided(lambda x, t: network(x, t, torch.cat([null, LABELS])), 4.0)
    torch.testing.assert_close(pair(TOKENS, TIMES), without + 4 * (conditional - without), **EQUAL)


def test_labels_are_dropped_as_often_as_asked_and_by_the_generator_alone() -> None:
    network, labels = model(), torch.arange(10_000) % 5
    drawn = [network.drop_labels(labels, 0.1, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    dropped = drawn[0] == 5
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(drawn[0][~dropped], labels[~dropped])


@torch.no_grad()
def test_time_and_class_change_what_is_said_and_the_batch_does_not() -> None:
    network = model()
    noise = network(TOKENS, TIMES, LABELS)
    assert (network(TOKENS, TIMES.flip(0), LABELS) - noise).abs().max() > 1e-2
    assert (network(TOKENS, TIMES, LABELS.flip(0)) - noise).abs().max() > 1e-2
    torch.testing.assert_close(network(TOKENS[1:], TIMES[1:], LABELS[1:]), noise[1:], **EQUAL)
    assert torch.equal(network(TOKENS, TIMES.float(), LABELS.int()), noise)


@torch.no_grad()
def test_bfloat16_weights_take_float32_tokens_and_stay_close() -> None:
    network = model()
    expected = network(TOKENS, TIMES, LABELS)
    half = network.bfloat16()(TOKENS, TIMES, LABELS)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("kind", [LinearDiT, SoftmaxDiT])
@torch.no_grad()
def test_float16_weights_give_what_the_same_weights_give_in_float32(kind: type[DiT]) -> None:
    network = model(kind).half()
    half = network(TOKENS, TIMES, LABELS)
    exact = network.float()(TOKENS, TIMES, LABELS)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.0, atol=2e-3 * float(exact.abs().max()))


@pytest.mark.parametrize(("size", "millions"), [("s", 33), ("b", 130), ("l", 458), ("xl", 675)])
def test_a_published_size_has_the_published_count(size: str, millions: int) -> None:
    with torch.device("meta"):
        network = SoftmaxDiT(dit_preset(f"dit-{size}/2"))
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions
    assert network.to_noise.out_features == 8 * 2**2


def test_presets_are_four_sizes_with_three_patches_and_the_documents_own() -> None:
    assert set(DITS) == {f"dit-{size}/{patch}" for size in ("s", "b", "l", "xl") for patch in (2, 4, 8)} | {
        "linear-dit"
    }
    for name, config in DITS.items():
        if name != "linear-dit":
            assert config.patch_size == int(name[-1]) and config.input_dim == 4 * config.patch_size**2
            assert config.head_dim in {64, 72} and isinstance(config, SoftmaxDiTConfig)
    assert dit_preset("linear-dit") == LinearDiTConfig(**LinearDiT.recommended_defaults())
    with pytest.raises(ConfigError, match="unknown DiT preset dit-x/2; did you mean dit-xl/2"):
        dit_preset("dit-x/2")


@pytest.mark.parametrize("kind", KINDS)
def test_the_count_is_that_of_the_model(kind: type[DiT]) -> None:
    options = {"hidden_size": 28, "num_layers": 3, "num_heads": 7, "mlp_ratio": 2.5, "num_classes": 5}
    built = kind.build(12, **options)
    assert kind.param_count(12, **options) == sum(parameter.numel() for parameter in built.parameters())
    # One block more: 18 h^2 with a ratio of 4, and 15 biases; here 2 * 2.5 + 4 + 6 = 15 h^2 and 13.5 h.
    more = kind.param_count(12, **options | {"num_layers": 4}) - kind.param_count(12, **options)
    assert more == 15 * 28**2 + (6 + 3 + 1 + 2.5 + 1) * 28


def test_the_documents_formula_has_the_documents_value() -> None:
    # 2 * 64 * 512 + 2 * 512^2 + 12 * (10 * 512^2 + 2 * 512 * 2048)
    assert LinearDiT.documented_param_count(64) == 57_212_928
    assert LinearDiT.documented_param_count(**LinearDiT.recommended_defaults()) == 57_212_928
    assert LinearDiT.documented_param_count(12, hidden_size=4, num_layers=1, num_heads=1, mlp_ratio=1.4) == (
        2 * 12 * 4 + 2 * 16 + 10 * 16 + 2 * 4 * 6
    )
    # It comes within 1 % of the truth.
    assert LinearDiT.param_count(64) == pytest.approx(57_212_928, rel=0.01)


def test_every_documented_name_is_on_the_public_class() -> None:
    defaults = lineardit.LinearDiT.recommended_defaults()
    assert defaults == {
        "input_dim": 64,
        "hidden_size": 512,
        "num_layers": 12,
        "num_heads": 8,
        "mlp_ratio": 4.0,
        "num_classes": None,
        "num_steps": 1000,
        "patch_size": 2,
    }
    with torch.device("meta"):
        built = lineardit.LinearDiT.build(64)
        assert built.config == lineardit.LinearDiT.build(**defaults).config == LinearDiTConfig(**defaults)
        assert all(block.attention.feature_map == "elu1" for block in built.blocks)
    assert lineardit.LinearDiT.output_size(64) == 64 and lineardit.SoftmaxDiT.output_size(12) == 12


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {},
            "input_dim is missing. Give the numbers of a token, patch_size^2 times the channels of an image",
        ),
        ({"input_dim": 64, "num_heads": 7}, "num_heads=7. Use num_heads=4 or num_heads=8."),
        ({"input_dim": 64, "hidden_size": 12, "num_heads": 24}, "num_heads=24. Use num_heads=12."),
        ({"input_dim": 64, "hidden_size": 30, "num_heads": 5}, "hidden_size=30 does not split into sines"),
        ({"input_dim": 0}, "input_dim=0: Input should be greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, int], complaint: str) -> None:
    for call in (LinearDiT.build, LinearDiT.param_count, LinearDiT.output_size, SoftmaxDiT.build):
        with pytest.raises(ConfigError) as caught:
            call(**options)
        assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_takes_the_configuration_of_its_kind() -> None:
    with pytest.raises(ConfigError, match="SoftmaxDiT is given a LinearDiTConfig. Use a SoftmaxDiTConfig."):
        SoftmaxDiT(LinearDiTConfig(**SIZES))
    with pytest.raises(ConfigError, match="unknown key depth"):
        LinearDiT.param_count(64, depth=3)


@pytest.mark.parametrize(
    ("given", "error", "complaint"),
    [
        (
            (TOKENS[..., :11], TIMES),
            ShapeError,
            "the tokens have 11 numbers each, the model takes input_dim=12",
        ),
        (
            (TOKENS[0, 0], TIMES),
            ShapeError,
            "noisy_input has 1 axes. Give tokens (batch, num_patches, input_dim)",
        ),
        (
            (IMAGES[:, :2], TIMES),
            ShapeError,
            "2 * 2^2 = 8 numbers, the model takes input_dim=12. Give images of 3",
        ),
        (
            (IMAGES[..., :7], TIMES),
            ShapeError,
            "image width=7 is not a multiple of patch_size=2. Use 6 or 8.",
        ),
        ((IMAGES[:, :, :1], TIMES), ShapeError, "image height=1 is not a multiple of patch_size=2. Use 2."),
        ((TOKENS, TIMES[:1]), ShapeError, "timestep has shape (1,), noisy_input a batch of 2"),
        ((TOKENS, TIMES, LABELS[:1]), ShapeError, "class_labels has shape (1,), noisy_input a batch of 2"),
        ((TOKENS, torch.tensor([0, 1000])), InputError, "timestep 1000 does not lie in 0 <= timestep < 1000"),
        ((TOKENS, torch.tensor([0, -1])), InputError, "timestep -1 does not lie in 0 <= timestep < 1000"),
        ((TOKENS, torch.tensor([0.0, math.nan])), InputError, "timestep nan does not lie in"),
        (
            (TOKENS, TIMES, torch.tensor([0, 6])),
            InputError,
            "class 6 does not lie in 0 <= class < 6. Use 0 to 5; 5",
        ),
        (
            (TOKENS, TIMES, LABELS.float()),
            InputError,
            "class_labels are torch.float32. Give whole numbers from 0",
        ),
        ((TOKENS, TIMES, torch.tensor([-1, 0])), InputError, "class -1 does not lie in 0 <= class < 6."),
    ],
)
def test_input_that_does_not_fit_is_refused(
    given: tuple[Tensor, ...], error: type[Exception], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As users have it: outside of tests nobody checks the annotated shapes.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error) as caught:
        model()(*given)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_without_classes_refuses_them() -> None:
    network = model(num_classes=None)
    for call in (
        lambda: network(TOKENS, TIMES, LABELS),
        lambda: network.drop_labels(LABELS, 0.1, torch.Generator()),
    ):
        with pytest.raises(InputError, match="this model is unconditional: leave class_labels out"):
            call()
    with pytest.raises(InputError, match="a dropout probability of 1.5 does not lie in"):
        model().drop_labels(LABELS, 1.5, torch.Generator())


def test_a_token_that_is_no_patch_takes_no_image() -> None:
    with pytest.raises(ShapeError, match="input_dim=13. Give tokens: no image fits."):
        model(input_dim=13)(IMAGES, TIMES)


class Watched(TorchDispatchMode):
    """Which operators run, and on which devices what they make lies."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.devices: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        self.operators.append(function.overloadpacket.__name__)
        self.devices |= {each.device.type for each in pytree.tree_leaves(made) if isinstance(each, Tensor)}
        return made


@pytest.mark.parametrize("noisy", [TOKENS, IMAGES])
@torch.no_grad()
def test_positions_are_made_where_the_tokens_are(noisy: Tensor) -> None:
    network, given = model().to("meta"), [each.to("meta") for each in (noisy, TIMES, LABELS)]
    with Watched() as seen:
        network(*given)
    assert seen.devices == {"meta"}


@torch.no_grad()
def test_values_are_looked_at_once_since_that_stalls_a_gpu() -> None:
    network = model()
    with Watched() as seen:
        network(TOKENS, TIMES, LABELS)
    assert seen.operators.count("_local_scalar_dense") == 1 and "index" not in seen.operators


def test_a_compiled_model_looks_at_no_values_but_keeps_its_other_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, late = model(num_classes=None), torch.tensor([3, 1000])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert network(TOKENS, late).isfinite().all()
    with pytest.raises(InputError, match="this model is unconditional"):
        network(TOKENS, late, LABELS)
