"""Everything of a run that changes from step to step, however many processes hold it: saved, found, shown."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from lineardit.config.runs import LoopConfig
from lineardit.errors import CheckpointError, OutputError
from lineardit.training import checkpoint, optimizer_state
from lineardit.training.average import WeightAverage
from lineardit.training.distributed import World
from lineardit.training.loss_scale import LossScale
from lineardit.training.optimizer import build_optimizers
from lineardit.training.parallel import checkpoint_blocks, gather_into, spread
from lineardit.training.pieces import load_module
from lineardit.training.rival import opponents

_log = logging.getLogger(__name__)


@runtime_checkable
class Positioned(Protocol):
    """A task that can say where in its data a step begins."""

    def position(self, step: int) -> Mapping[str, Any]:
        """What decides the batches from `step` on, as JSON: such as the epoch, the place in it, the data's
        digest.

        It is kept in the checkpoint, and a run whose data give another position is not resumed.
        """
        ...


class RunState:
    """The weights, their average, the optimizers, a second player and the loss scale."""

    def __init__(self, task: Any, loop: LoopConfig, folder: Path, world: World) -> None:
        self.task, self.loop, self.folder, self.world = task, loop, folder, world
        self.model: nn.Module = task.model
        average = WeightAverage.of(self.model, loop)
        # Sharded weights compute in all processes only; pictures are drawn by the first one, from a whole
        # copy.
        alone = world.first and world.size > 1 and loop.parallel == "fsdp"
        self._whole = copy.deepcopy(average.model) if alone else None
        if loop.checkpoint_activations:
            checkpoint_blocks(self.model)
        self.spread = spread(self.model, average.model, loop, world)
        self.average = average
        self.optimizers = build_optimizers(self.model, loop)
        self.rivals = opponents(task, world)
        self.scale = LossScale(loop.dtype)

    def update(self, step: int, rate: float) -> None:
        """Follow the gradients, and let the average follow the weights."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.average.update(self.model, step)

    def averaged(self) -> nn.Module:
        """The network with averaged weights, whole in the first process; all processes call this at once."""
        if not self.spread.sharded:
            return self.average.model
        gather_into(self._whole, self.average.model)
        return self.average.model if self._whole is None else self._whole

    def save(self, step: int, score: float | None) -> None:
        """Write a checkpoint of the first `step` steps."""
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "ema": self.average.state_dict(),
            "optimizer": optimizer_state.moments(self.optimizers),
        }
        state = {"groups": optimizer_state.groups(self.optimizers), **self.scale.state()}
        if isinstance(self.task, Positioned):
            state["position"] = dict(self.task.position(step))
        for rival in self.rivals:
            tensors |= rival.tensors()
            state |= rival.state()
        checkpoint.save(
            self.folder,
            step,
            tensors,
            state,
            self.loop.keep,
            keep_best=self.loop.keep_best,
            score=score,
            world=self.world,
            part=self.spread.part,
        )

    def restore(self, resume: bool) -> int:
        """Go on from the newest whole checkpoint and return its step, or 0 where there is none.

        Raises:
            OutputError: there is one, and `resume` is false.
            CheckpointError: it is of another network, optimizer or data.
        """
        found = checkpoint.load_newest(self.folder, self.world)
        if found is None:
            return 0
        if not resume:
            raise OutputError(
                f"{self.folder} holds a run at step {found.step}: add --resume to go on, "
                "or name another folder."
            )
        try:
            load_module(self.model, found.tensors["model"])
            load_module(self.average.model, found.tensors["ema"])
            optimizer_state.restore(self.optimizers, found.tensors["optimizer"], found.state["groups"])
            for rival in self.rivals:
                rival.restore(found)
        except (RuntimeError, LookupError, ValueError) as error:
            raise CheckpointError(
                f"{found.path} is of another network or optimizer: {str(error).splitlines()[0]} "
                "Resume with the recipe it was made by."
            ) from None
        self.scale.restore(found.state)
        self._check_position(found)
        return found.step

    def _check_position(self, found: checkpoint.Loaded) -> None:
        before = found.state.get("position")
        if before is None or not isinstance(self.task, Positioned):
            return
        now = dict(self.task.position(found.step))
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if changed:
            raise CheckpointError(
                f"{found.path} was made with other data: {changed[0]} was {before.get(changed[0])} and is "
                f"{now.get(changed[0])}. Resume with the data and the recipe it was made by."
            )
