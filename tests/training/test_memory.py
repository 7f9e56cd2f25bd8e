"""What a training step takes is predicted from shapes, and is what torch's allocator is asked for."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from lineardit.config.article import ArticleConfig
from lineardit.config.classes import ClassNetwork, ClassRun
from lineardit.config.detector import DetectorRun
from lineardit.config.finetune import FinetuneRun
from lineardit.config.models import AutoencoderConfig, TransformerConfig
from lineardit.config.reconstruction import AdversarialConfig, ReconstructionConfig
from lineardit.config.runs import AutoencoderRun, LoopConfig, OptimizerConfig, TextRun, TransformerRun
from lineardit.config.scenes import SceneConfig
from lineardit.errors import ConfigError, InputError
from lineardit.training.adapter import fresh_adapter
from lineardit.training.adversarial import PatchDiscriminator
from lineardit.training.memory import (
    FLOAT,
    TrainingMemory,
    dit_memory,
    largest_block,
    moment_bytes,
    transformer_memory,
)
from lineardit.training.optimizer import build_optimizers
from lineardit.training.optimizer_state import moments
from lineardit.training.parallel import checkpoint_blocks
from lineardit.training.plan import plan
from lineardit.transformer.article import ArticleSana
from lineardit.transformer.dit import DiT, LinearDiT, SoftmaxDiT
from lineardit.transformer.model import Transformer

CONFIG = TransformerConfig(
    latent_channels=4, patch_size=1, depth=2, width=64, head_dim=16, cross_head_dim=16, text_width=24
)
STAGES = [{"width": 8, "depth": 0}, {"width": 8, "depth": 1}, {"width": 16, "depth": 1}]
AUTOENCODER = AutoencoderConfig(latent_channels=4, encoder=STAGES, decoder=STAGES)


def allocated(model: nn.Module, loss: Callable[[], Tensor], dtype: str, checkpointed: bool) -> int:
    """Peak of torch's own CPU allocator in a forward and backward pass, less the gradients that are left."""
    if checkpointed:
        checkpoint_blocks(model)
    cast = torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else nullcontext()
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True) as measured, sdpa_kernel(SDPBackend.MATH):
        with cast:
            value = loss()
        torch.autograd.backward(value)
    assert measured.profiler is not None and measured.profiler.kineto_results is not None
    events = measured.profiler.kineto_results.events()
    changes = sorted((each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak - FLOAT * sum(each.numel() for each in model.parameters() if each.requires_grad)


def velocity_loss(model: nn.Module) -> Tensor:
    latents = torch.randn(3, 4, 16, 16)
    mask = torch.ones(3, 20, dtype=torch.bool)
    velocity = model(latents, torch.rand(3), torch.randn(3, 20, 24), mask)
    return (velocity.float() - torch.randn_like(latents)).square().mean()


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # torch 2.11, of a profile of one cycle
@pytest.mark.parametrize(("dtype", "checkpointed"), [("bf16", False), ("fp32", True)])
def test_the_prediction_is_what_the_allocator_measures(dtype: str, checkpointed: bool) -> None:
    # A third block comes by extrapolation.
    config = CONFIG.model_copy(update={"depth": 4})
    predicted = transformer_memory(
        config,
        OptimizerConfig(optimizer="came"),
        3,
        16,
        16,
        dtype=dtype,
        checkpointed=checkpointed,
        device="cpu",
        prompt_tokens=20,
    )
    model = Transformer(config)
    measured = allocated(model, lambda: velocity_loss(model), dtype, checkpointed)
    assert predicted.working == pytest.approx(measured, rel=0.03)
    assert predicted.weights == FLOAT * sum(each.numel() for each in model.parameters())


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
@pytest.mark.parametrize("kind", [LinearDiT, SoftmaxDiT])
def test_so_it_is_of_class_conditional_networks(kind: type[DiT]) -> None:
    config = kind.config_type(input_dim=16, hidden_size=48, num_layers=4, num_heads=3, num_classes=5)
    came = OptimizerConfig(optimizer="came")
    predicted = dit_memory(config, came, 3, 16, 16, dtype="bf16", device="cpu")
    model = kind(config)

    def loss() -> Tensor:
        latents = torch.randn(3, 4, 16, 16)
        noise = model(latents, torch.tensor([1, 2, 3]), torch.tensor([0, 4, 5]))
        return (noise.float() - torch.randn_like(latents)).square().mean()

    assert predicted.working == pytest.approx(allocated(model, loss, "bf16", False), rel=0.03)
    assert predicted.weights == FLOAT * sum(each.numel() for each in model.parameters())


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_so_it_is_of_a_lora_beside_a_transformer(method: str) -> None:
    run = FinetuneRun(data=Path("d"), method=method, train=LoopConfig(steps=1, batch_size=3))

    def learner(model: nn.Module) -> nn.Module:
        assert isinstance(model, Transformer)
        return fresh_adapter(run, model)

    config = CONFIG.model_copy(update={"depth": 4})
    predicted = transformer_memory(
        config, run.train, 3, 16, 16, dtype="fp32", device="cpu", prompt_tokens=20, learner=learner
    )
    model = learner(Transformer(config))
    measured = allocated(model, lambda: velocity_loss(model), "fp32", False)
    assert predicted.working == pytest.approx(measured, rel=0.03)
    own = sum(each.numel() for each in model.parameters())
    assert predicted.weights == predicted.average == predicted.gradients == FLOAT * own
    assert predicted.beside == FLOAT * sum(each.numel() for each in Transformer(config).parameters())


@pytest.mark.parametrize("name", ["adamw", "came", "muon"])
def test_moments_are_counted_as_the_optimizer_keeps_them(name: str) -> None:
    model = Transformer(CONFIG)
    model.patchify.requires_grad_(False)
    loop = LoopConfig(steps=1, batch_size=1, optimizer=name)
    optimizers = build_optimizers(model, loop)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    for optimizer in optimizers:
        optimizer.step()
    kept = sum(each.nbytes for each in moments(optimizers).values() if each.ndim)
    assert moment_bytes(model, loop) == kept


def test_sharing_divides_the_state_and_gathers_blocks() -> None:
    whole = TrainingMemory(100, 90, 200, 101, 7)
    shared = whole.sharded(4, largest_block=10)
    assert shared == TrainingMemory(25, 23, 50, 26, 7, gathered=30)
    assert (whole.total, shared.total) == (498, 161)
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 5)])
    model.head = nn.Linear(5, 2)
    assert largest_block(model) == FLOAT * (3 * 5 + 5)


def recipe(**train: object) -> TransformerRun:
    return TransformerRun.model_validate(
        {
            "model": CONFIG.model_dump(),
            "scenes": {"size": 64, "placement_step": 8},
            "train": {"steps": 1, "batch_size": 32, "optimizer": "came", **train},
            "autoencoder": "a",
            "text_encoder": "t",
        }
    )


def test_a_plan_divides_batch_and_state() -> None:
    alone = plan(recipe(), 1, 1, AUTOENCODER)
    assert (alone.processes, alone.within, alone.rows) == (1, 1, 32)
    copies = plan(recipe(), 2, 2, AUTOENCODER)
    assert (copies.processes, copies.within, copies.rows) == (4, 1, 8)
    assert copies.memory.weights == alone.memory.weights
    assert copies.memory.working < alone.memory.working / 3
    shared = plan(recipe(parallel="fsdp", shard_within=2, accumulate=4), 2, 2, AUTOENCODER)
    assert (shared.within, shared.rows, shared.accumulate) == (2, 2, 4)
    assert shared.memory.weights == alone.memory.weights / 2 and shared.memory.gathered > 0
    pictures = AutoencoderRun(model=AUTOENCODER, train=LoopConfig(steps=1, batch_size=2), crop=32)
    assert plan(pictures, 1, 2).memory.working > 0


def test_every_kind_of_recipe_has_a_plan_or_says_why_not(tiny_model: Path, tmp_path: Path) -> None:
    loop = LoopConfig(steps=1, batch_size=4)
    scenes = SceneConfig(size=32, objects=5, max_objects=1, placement_step=4)
    network = ClassNetwork(hidden_size=16, num_layers=1, num_heads=2)
    classes = plan(ClassRun(autoencoder=tiny_model, model=network, scenes=scenes, train=loop), 1, 2)
    assert classes.rows == 2 and classes.parameters == LinearDiT.param_count(
        16, hidden_size=16, num_layers=1, num_heads=2, num_classes=5
    )
    tuned = {
        method: plan(FinetuneRun(base=str(tiny_model), data=tmp_path, method=method, train=loop), 1, 1)
        for method in ("full", "lora")
    }
    assert tuned["lora"].parameters < tuned["full"].parameters
    # A LoRA leaves all that the whole transformer's weights take beside it, with the encoders.
    weights = tuned["full"].memory.weights
    assert tuned["lora"].memory.beside == tuned["full"].memory.beside + weights
    judged = ReconstructionConfig(perceptual=0, adversarial=AdversarialConfig(weight=0.5, width=8, depth=1))
    rival = plan(AutoencoderRun(model=AUTOENCODER, train=loop, crop=32, loss=judged), 1, 1).memory
    # Weights, gradients and two moments of the second player.
    states = 4 * FLOAT * sum(each.numel() for each in PatchDiscriminator(8, 1).parameters())
    assert rival.beside == pytest.approx(states, abs=64)
    for run in (TextRun(start=tmp_path, train=loop), DetectorRun(train=loop)):
        with pytest.raises(InputError, match=f'kind="{run.kind}" trains a small network that fits any mach'):
            plan(run, 1, 1)


@pytest.mark.parametrize(
    ("train", "nodes", "gpus", "error", "message"),
    [
        ({}, 3, 1, ConfigError, "does not divide among 3 processes"),
        ({"parallel": "fsdp", "shard_within": 3}, 2, 2, ConfigError, "shard_within=3 does not divide 4"),
        ({}, 1, 0, InputError, "gpus=0 is not a positive whole number"),
    ],
)
def test_what_does_not_divide_is_refused(
    train: dict[str, object], nodes: int, gpus: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(recipe(**train), nodes, gpus, AUTOENCODER)


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")
def test_the_articles_network_is_extrapolated_by_its_cross_attentions() -> None:
    config = ArticleConfig(
        latent_channels=4, width=64, depth=6, heads=4, qk_dim=16, text_width=24, cross_attention_every=2
    )
    predicted = transformer_memory(
        config, OptimizerConfig(optimizer="came"), 3, 16, 16, dtype="bf16", device="cpu", prompt_tokens=20
    )
    model = ArticleSana(config)
    model.to_noise.weight.data.normal_()

    def loss() -> Tensor:
        latents = torch.randn(3, 4, 16, 16)
        mask = torch.ones(3, 20, dtype=torch.bool)
        noise = model(latents, torch.tensor([1, 2, 3]), torch.randn(3, 20, 24), mask)
        return (noise.float() - torch.randn_like(latents)).square().mean()

    measured = allocated(model, loss, "bf16", False)
    assert predicted.working == pytest.approx(measured, rel=0.1)
