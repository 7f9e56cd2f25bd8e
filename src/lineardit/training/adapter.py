"""A LoRA as a network of its own: what learns, is averaged and is kept in checkpoints is the LoRA alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lineardit.config.adapter import AdapterConfig
from lineardit.config.finetune import FinetuneRun
from lineardit.errors import ConfigError
from lineardit.interop.lora import Addition, Factors, add_lora, weigh_loras
from lineardit.interop.lora_files import fresh_lora, write_lora
from lineardit.training.loop import step_generator
from lineardit.training.parallel import checkpoint_blocks
from lineardit.transformer.model import Transformer

NAME = "trained"
DESCRIBED = {"base", "method", "adapter", "prior", "times", "prompt_dropout", "train"}
"""What the folder of a LoRA says of its recipe."""
BUNDLED = "lineardit's bundled model"
"""What a LoRA's folder calls it."""


class Adapter(nn.Module):
    """Called as the transformer is; its parameters are the LoRA's, while the transformer's stay as they are.

    A copy (the running average is one) has numbers of its own and shares the transformer, so that averages
    and checkpoints take as little memory as the LoRA does.
    """

    def __init__(self, transformer: Transformer, additions: Mapping[str, Addition]) -> None:
        super().__init__()
        # In a tuple it is no part of this network.
        self._transformer = (transformer,)
        self.additions = dict(additions)
        self._is_copy = False
        owners = {id(each): name for name, each in transformer.named_parameters()}
        self._places: dict[str, str] = {}
        for module, addition in additions.items():
            for kind, parameter in addition.named_parameters():
                key = f"{module}.{kind}".replace(".", "/")
                self._places[key] = owners[id(parameter)]
                self.register_parameter(key, parameter)

    @classmethod
    def fresh(
        cls, transformer: Transformer, config: AdapterConfig, generator: torch.Generator, *, dora: bool
    ) -> "Adapter":
        """Additions that change nothing yet, and alone learn.

        Raises: ConfigError where a target names no layer.
        """
        lora = fresh_lora(transformer, config.targets, config.rank, config.scaling, generator, dora=dora)
        transformer.requires_grad_(False)
        additions = add_lora(transformer, lora, NAME)
        for addition in additions.values():
            addition.requires_grad_(True)
        return cls(transformer, additions)

    @property
    def transformer(self) -> Transformer:
        """The network that is added to."""
        return self._transformer[0]

    def forward(self, *inputs: Any) -> Tensor:
        """The transformer's velocity with this LoRA."""
        if not self._is_copy:
            live: Tensor = self.transformer(*inputs)
            return live
        own: dict[str, Tensor] = {self._places[key]: value for key, value in self.named_parameters()}
        velocity: Tensor = functional_call(self.transformer, own, inputs)
        return velocity

    def before(self, *inputs: Any) -> Tensor:
        """The transformer's velocity without this LoRA; without gradients."""
        weigh_loras(self.transformer, {NAME: 0.0})
        try:
            with torch.no_grad():
                velocity: Tensor = self.transformer(*inputs)
        finally:
            weigh_loras(self.transformer, {NAME: 1.0})
        return velocity

    def factors(self) -> dict[str, Factors]:
        """What this LoRA adds, by the layers' names in diffusers."""
        own = dict(self.named_parameters())
        found = {}
        for module, addition in self.additions.items():
            key = module.replace(".", "/")
            magnitude = own.get(f"{key}/magnitude")
            found[module] = Factors(own[f"{key}/down"], own[f"{key}/up"], addition.scale, magnitude)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Adapter":
        copied = Adapter(self.transformer, self.additions)
        copied._is_copy = True
        for key, value in self.named_parameters():
            copied.register_parameter(key, nn.Parameter(value.detach().clone(), value.requires_grad))
        return copied


def fresh_adapter(run: FinetuneRun, transformer: Transformer) -> Adapter:
    """What learns where method is lora or dora.

    Raises: ConfigError where a target names no layer, or the recipe asks for sharding.
    """
    if run.train.parallel == "fsdp":
        raise ConfigError(
            f'train.parallel="fsdp" shards all weights, and method="{run.method}" trains few. Use "ddp".'
        )
    generator = step_generator(run.train.seed, 0, "adapter")
    adapter = Adapter.fresh(transformer, run.adapter, generator, dora=run.method == "dora")
    if run.train.checkpoint_activations:
        checkpoint_blocks(transformer)
    return adapter


def save_adapter(folder: Path, adapter: Adapter, run: FinetuneRun, about: Mapping[str, Any]) -> Path:
    """Write a LoRA as peft, diffusers and `lineardit generate --lora` read it."""
    return write_lora(
        folder,
        adapter.transformer,
        adapter.factors(),
        alpha=run.adapter.scaling,
        targets=run.adapter.targets,
        base=run.base or BUNDLED,
        about={**about, "recipe": run.model_dump(mode="json", include=DESCRIBED)},
    )
