"""What a training step takes is predicted from shapes, and is what torch's allocator is asked for."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from lineardit.config.models import AutoencoderConfig, TransformerConfig
from lineardit.config.runs import AutoencoderRun, LoopConfig, OptimizerConfig, TransformerRun
from lineardit.errors import ConfigError, InputError
from lineardit.training.memory import FLOAT, TrainingMemory, largest_block, moment_bytes, transformer_memory
from lineardit.training.optimizer import build_optimizers
from lineardit.training.optimizer_state import moments
from lineardit.training.parallel import checkpoint_blocks
from lineardit.training.plan import plan
from lineardit.transformer.model import Transformer

CONFIG = TransformerConfig(
    latent_channels=4, patch_size=1, depth=2, width=64, head_dim=16, cross_head_dim=16, text_width=24
)
STAGES = [{"width": 8, "depth": 0}, {"width": 8, "depth": 1}, {"width": 16, "depth": 1}]
AUTOENCODER = AutoencoderConfig(latent_channels=4, encoder=STAGES, decoder=STAGES)


def allocated(config: TransformerConfig, dtype: str, checkpointed: bool) -> int:
    """Peak of torch's own CPU allocator in a forward and backward pass, less the gradients that are left."""
    model = Transformer(config)
    if checkpointed:
        checkpoint_blocks(model)
    cast = torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else nullcontext()
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True) as measured, sdpa_kernel(SDPBackend.MATH):
        with cast:
            latents = torch.randn(3, 4, 16, 16)
            mask = torch.ones(3, 20, dtype=torch.bool)
            velocity = model(latents, torch.rand(3), torch.randn(3, 20, 24), mask)
            loss = (velocity.float() - torch.randn_like(latents)).square().mean()
        torch.autograd.backward(loss)
    assert measured.profiler is not None and measured.profiler.kineto_results is not None
    events = measured.profiler.kineto_results.events()
    changes = sorted((each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak - FLOAT * sum(parameter.numel() for parameter in model.parameters())


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
    assert predicted.working == pytest.approx(allocated(config, dtype, checkpointed), rel=0.03)
    assert predicted.weights == FLOAT * sum(p.numel() for p in Transformer(config).parameters())


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
