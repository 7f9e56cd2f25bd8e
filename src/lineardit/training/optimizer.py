"""The optimizer, its parameter groups, and the learning rate as a pure function of the step."""

import math

from torch import nn
from torch.optim import AdamW

from lineardit.config.runs import LoopConfig


def build_optimizer(model: nn.Module, config: LoopConfig) -> AdamW:
    """AdamW over two groups: matrices and kernels decay, norms, biases and tables of one axis do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas)


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
