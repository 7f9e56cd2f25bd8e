"""The optimizers, their parameter groups, and the learning rate as a pure function of the step."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from lineardit.config.runs import LoopConfig
from lineardit.errors import ConfigError, MissingExtraError
from lineardit.training.came import CAME
from lineardit.training.muon import Muon


def build_optimizers(model: nn.Module, config: LoopConfig) -> list[Optimizer]:
    """What the recipe names: one optimizer, or Muon for the matrices of the blocks and AdamW for the rest.

    Matrices and kernels decay; norms, biases and tables of one axis do not. Muon's steps are scaled to the
    size of AdamW's (arXiv:2502.16982), so that both follow the same learning rate.

    Raises:
        MissingExtraError: 8-bit moments are asked for, and no package that has them is there.
        ConfigError: nothing learns, Muon finds no matrix, or 8-bit moments and processes that share a copy
            are asked for together.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ConfigError("no weight of the network learns: all are frozen.")
    matrices = block_matrices(model, trained) if config.optimizer == "muon" else {}
    if config.optimizer == "muon" and not matrices:
        raise ConfigError(
            "train.optimizer=muon is for the matrices of a network's blocks, of which none learns here: a "
            "LoRA, a DoRA and an autoencoder have none. Use train.optimizer=adamw or came."
        )
    rest = [parameter for name, parameter in trained.items() if name not in matrices]
    every = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in every if group["params"]]
    match config.optimizer:
        case "came":
            return [CAME(groups, config.learning_rate, betas=(*config.betas, config.confidence_beta))]
        case "adamw8bit":
            return [_in_8_bits(groups, config)]
        case "muon":
            muon = Muon(matrices.values(), config.learning_rate, weight_decay=config.weight_decay)
            return [*([_adamw(groups, config)] if groups else []), muon]
    return [_adamw(groups, config)]


def _adamw(groups: list[dict[str, Any]], config: LoopConfig) -> Optimizer:
    """AdamW, on a CPU in one pass over each weight instead of ten."""
    on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
    return AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=on_cpu or None)


def _in_8_bits(groups: list[dict[str, Any]], config: LoopConfig) -> Optimizer:
    """AdamW with moments of 8 bits (arXiv:2110.02861), from bitsandbytes, where they are plain tensors."""
    if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
        raise ConfigError(
            "train.optimizer=adamw8bit does not work under train.parallel=fsdp, whose processes share the "
            "moments among them anyway. Use adamw or came, or train.parallel=ddp."
        )
    if not find_spec("bitsandbytes"):
        raise MissingExtraError("bitsandbytes", None, "train.optimizer=adamw8bit")
    from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]

    optimizer: Optimizer = AdamW8bit(groups, lr=config.learning_rate, betas=config.betas)
    return optimizer


def block_matrices(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Weights of the linear layers inside blocks: what goes in and out of a network is no mere rotation."""
    names = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {name: trained[name] for name in names if ".blocks." in f".{name}" and name in trained}


def learning_rate_at(step: int, config: LoopConfig) -> float:
    """The learning rate of step `step` (from 0): linear warm-up, then the chosen decay.

    cosine: half a cosine from the peak to `final_share` of it. constant: the peak. wsd: the peak, and a
    straight line to `final_share` over the last `decay_share` (warm-up, stable, decay; arXiv:2404.06395).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.decay == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif config.decay == "wsd":
        share = min(1.0, max(0.0, (1 - progress) / config.decay_share))
    else:
        share = 1.0
    return config.learning_rate * (config.final_share + (1 - config.final_share) * share)
