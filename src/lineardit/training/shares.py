"""How the batch of a step is divided, among processes and over time, without its loss becoming another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from lineardit.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """Part `index` of `count` equal ones of a step's batch."""

    index: int = 0
    count: int = 1

    def rows(self, batch: int) -> slice:
        """The rows of a batch that belong to this part; the first ones are the longer, if any."""
        each, longer = divmod(batch, self.count)
        start = self.index * each + min(self.index, longer)
        return slice(start, start + each + (self.index < longer))


@runtime_checkable
class Divisible(Protocol):
    """A task that computes the loss of part of a step's batch without preparing the rest of it.

    It draws what decides the batch (which samples, times, noise) as it does for the whole of it, and then
    takes the rows of its share, so that the mean of the shares' losses is the loss of the batch. Tasks
    without this method are divided too, by `divide_forward`, but prepare the whole batch in each process, and
    cannot accumulate gradients.
    """

    def losses_of_share(self, step: int, share: Share) -> Mapping[str, Tensor]:
        """As `losses`, of the rows `share.rows(batch)` of step `step`; each is a mean over rows."""
        ...


def divide_forward(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Let every process of `group` run `model` on its rows alone and see the output for all rows.

    Of the tensors in the model's input, those as long as the first one are cut along their first axis. All
    processes must call the model with the same input; what they compute from its output is then the same
    everywhere, and is exactly what one process would have computed, whatever the loss does. Gradients of the
    parameters come out so that their mean over the processes is the true one, as DDP and FSDP take it.
    """
    share = Share(dist.get_rank(group), dist.get_world_size(group))
    lengths: list[int] = []

    # Compiled code must not look inside: the calls between processes depend on lengths.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        first = next(
            each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor) and each.ndim
        )
        batch = len(first)
        if batch < share.count:
            raise ConfigError(
                f"a batch of {batch} rows leaves some of {share.count} processes without any. "
                f"Use train.batch_size={share.count} or a multiple of it, or fewer processes."
            )
        lengths.append(batch)

        def cut(each: Any) -> Any:
            long = isinstance(each, Tensor) and each.ndim > 0 and len(each) == batch
            return each[share.rows(batch)] if long else each

        cut_args, cut_kwargs = tree_map(cut, (args, kwargs))
        return cut_args, cut_kwargs

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        batch = lengths.pop()

        def gather(each: Any) -> Any:
            if not isinstance(each, Tensor):
                return each
            return _Gathered.apply(each, batch, share, group)  # type: ignore[no-untyped-call]

        return tree_map(gather, output)

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, with_kwargs=True)


class _Gathered(torch.autograd.Function):
    """Rows of all processes, one after the other."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, batch: int, share: Share, group: dist.ProcessGroup) -> Tensor:
        ctx.rows, ctx.count = share.rows(batch), share.count
        lengths = [len(range(batch)[Share(index, share.count).rows(batch)]) for index in range(share.count)]
        # The parts that are sent must be equally long.
        padded = own.new_zeros(max(lengths), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        # Every process has the gradient of the whole loss: the sum over processes would count it once per
        # row.
        return gradient[ctx.rows] * ctx.count, None, None, None
