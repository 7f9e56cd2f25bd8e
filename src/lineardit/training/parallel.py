"""One network in many processes: copies that average gradients (DDP), or rows of every tensor (FSDP2)."""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from lineardit.config.runs import LoopConfig
from lineardit.errors import ConfigError
from lineardit.training.distributed import World
from lineardit.training.shares import Share


class Spread(NamedTuple):
    """How a network lies in the processes of a job."""

    part: Share | None = Share()
    """The part of a checkpoint that this process writes; None where another has the same rows."""
    group: dist.ProcessGroup | None = None
    """All processes."""
    sharded: bool = False
    """Whether tensors are spread by rows."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network, which are gathered and computed again one by one.

    They are what stands in lists of modules, or in the sequences that stand there.
    """
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            for each in child:
                found += each.children() if isinstance(each, nn.Sequential) else [each]
        else:
            found += blocks_of(child)
    return found


def checkpoint_blocks(model: nn.Module) -> None:
    """Let every block keep its input alone, and compute the rest again on the way back.

    What is copied from the model must be copied before: the copy's blocks would compute with these weights.
    """
    for block in blocks_of(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def spread(model: nn.Module, average: nn.Module, loop: LoopConfig, world: World) -> Spread:
    """Connect the copies of `model` in all processes, or keep of it and its average the own rows only.

    Every process must have built the same weights.

    Raises:
        ConfigError: the processes do not divide into groups of `loop.shard_within`.
    """
    if world.size == 1:
        return Spread()
    from torch.distributed.device_mesh import init_device_mesh

    kind = world.device.type
    if loop.parallel == "ddp":
        from torch.distributed._composable.replicate import replicate

        mesh = init_device_mesh(kind, (world.size,), mesh_dim_names=("replicate",))
        # As DistributedDataParallel, which it uses, but the network stays what it is and is called as before.
        replicate(model, device_mesh=mesh)
        return Spread(Share() if world.first else None, mesh.get_group())
    from torch.distributed.fsdp import fully_shard

    within = loop.shard_within or world.size
    if world.size % within:
        raise ConfigError(
            f"train.shard_within={within} does not divide {world.size} processes. "
            f"Use a divisor of {world.size}, such as the number of GPUs of one machine."
        )
    replicas = world.size // within
    shape, names = ((replicas, within), ("replicate", "shard")) if replicas > 1 else ((within,), ("shard",))
    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    for network in (model, average):
        for tensor in network.parameters():
            tensor.data = tensor.data.contiguous()
        for block in blocks_of(network):
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
    part = Share(mesh.get_local_rank("shard"), within)
    own_copy = replicas == 1 or mesh.get_local_rank("replicate") == 0
    return Spread(part if own_copy else None, dist.group.WORLD, sharded=True)


def synchronise(model: nn.Module, wanted: bool) -> None:
    """Whether copies average their gradients in the next backward pass; under FSDP they always do.

    There a gradient that is not yet averaged would be a whole one, which sharding is to avoid.
    """
    from torch.distributed._composable.replicate import DDP

    if isinstance(model, DDP):
        model.set_requires_gradient_sync(wanted)


def clip(model: nn.Module, longest: float) -> float:
    """Scale all gradients down to a length of at most `longest`, and say how long they were.

    Those that are short enough, or not finite, are left as they are, and not read a second time.
    """
    from torch.distributed.tensor import DTensor

    learning = [each for each in model.parameters() if each.grad is not None]
    norm = nn.utils.get_total_norm([each.grad for each in learning if each.grad is not None])
    length = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if longest <= length < math.inf:
        nn.utils.clip_grads_with_norm_(learning, longest, norm)
    return length


@torch.no_grad()
def gather_into(whole: nn.Module | None, network: nn.Module) -> None:
    """Copy a spread network into a whole one; all processes take part, those without one only send."""
    from torch.distributed.tensor import DTensor

    target = {} if whole is None else whole.state_dict()
    for name, tensor in network.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if name in target:
            target[name].copy_(full)
