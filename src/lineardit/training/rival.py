"""The second player of a run: a network that learns against the first, such as a discriminator."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lineardit.config.runs import LoopConfig
from lineardit.errors import NotFiniteError
from lineardit.nn.finite import check_parameters
from lineardit.training import optimizer_state
from lineardit.training.checkpoint import Loaded
from lineardit.training.distributed import World
from lineardit.training.optimizer import build_optimizers, learning_rate_at


@runtime_checkable
class Rival(Protocol):
    """Who learns against the network of a task, once after each of its steps."""

    model: nn.Module
    loop: LoopConfig
    """Its optimizer and learning rate; how many steps there are, the task's own says."""

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """Named scalars, `loss` being minimised, about what the task just made in its `losses(step)`."""
        ...


@runtime_checkable
class Contested(Protocol):
    """A task with a second player, or with none."""

    rival: Rival | None


class Opponent:
    """A rival with its optimizers: its own backward pass and step, and its part of a checkpoint.

    Each process has a whole one. They average gradients, so that it stays the same one in all of them.
    """

    def __init__(self, rival: Rival, world: World) -> None:
        self.rival, self.world = rival, world
        self._optimizers = build_optimizers(rival.model, rival.loop)

    def step(self, step: int, precision: AbstractContextManager[Any]) -> dict[str, Tensor]:
        """Learn from what the first player made in step `step`; its loss, called `rival`, and the others.

        An update whose gradient is not finite is left out. Raises: NotFiniteError for a loss that is not.
        """
        loop, model = self.rival.loop, self.rival.model
        # What the first player's backward pass left here is none of its own.
        model.zero_grad(set_to_none=True)
        with precision:
            losses = dict(self.rival.losses(step))
        losses["rival"] = losses.pop("loss")
        torch.autograd.backward(losses["rival"])
        self.world.average([each.grad for each in model.parameters() if each.grad is not None])
        norm = nn.utils.clip_grad_norm_(model.parameters(), loop.clip)
        if not torch.isfinite(losses["rival"]):
            check_parameters(model)
            raise NotFiniteError(f"the loss of the second player is not finite at step {step}.")
        if torch.isfinite(norm):
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(step, loop)
                optimizer.step()
        return losses

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Weights and moments, as further files of a checkpoint."""
        return {
            "rival": self.rival.model.state_dict(),
            "rival_optimizer": optimizer_state.moments(self._optimizers),
        }

    def state(self) -> dict[str, Any]:
        """What is no tensor."""
        return {"rival_groups": optimizer_state.groups(self._optimizers)}

    def restore(self, found: Loaded) -> None:
        """Go on from a checkpoint. Raises: RuntimeError, LookupError or ValueError where it does not fit."""
        self.rival.model.load_state_dict(found.tensors["rival"])
        optimizer_state.restore(
            self._optimizers, found.tensors["rival_optimizer"], found.state["rival_groups"]
        )


def opponents(task: object, world: World) -> list[Opponent]:
    """The second player of a task, if it has one."""
    return [Opponent(task.rival, world)] if isinstance(task, Contested) and task.rival is not None else []
