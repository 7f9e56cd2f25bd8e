"""Weights that lie in their files while nobody needs them: networks larger than the memory run.

    offload(block, tensors)       its weights are shapes without numbers from now on
    with loaded(block): ...       inside they are there; any other module passes through

What is read for one use is forgotten after it, unless it is to be `kept`, until somebody needs the room
(`forget`). What is read may be changed at once (`when_read`, `nn.int8`), and what is kept laid out anew
(`when_kept`, `nn.packed`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, NamedTuple

from torch import Tensor, nn

_ATTRIBUTE = "offloaded"
_NOTHING = nullcontext()


class _Place(NamedTuple):
    """Where one weight belongs."""

    owner: nn.Module
    name: str
    nothing: Tensor
    """Its shape, on the meta device; a parameter or a buffer."""
    read: Callable[[], Tensor]

    def put(self, tensor: Tensor) -> None:
        is_parameter = isinstance(self.nothing, nn.Parameter)
        setattr(self.owner, self.name, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


class Offloaded(AbstractContextManager[None]):
    """The weights of one module; entered, they are in memory. Not for several threads at once."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self._places = [
            _Place(owner, name, tensor, _reader(tensors, place))
            for place, owner, name, tensor in _weights(module)
        ]
        self._module = module
        self._children = [
            (parent, name, child) for parent in module.modules() for name, child in parent.named_children()
        ]
        self.stored_bytes = sum(place.nothing.nbytes for place in self._places)
        self.size_bytes = self.stored_bytes
        """What it takes once it was read and changed."""
        self.kept = self.is_loaded = False
        self.when_read: Callable[[nn.Module], object] | None = None
        """What is done to the module whenever its weights were read; it may replace layers in it."""
        self.when_kept: Callable[[nn.Module], object] | None = None
        """The same after that, where they were read to be kept; no number changes."""
        self._users = 0

    def __enter__(self) -> None:
        if not self.is_loaded:
            try:
                for place in self._places:
                    place.put(place.read())
                if self.when_read is not None:
                    self.when_read(self._module)
                if self.kept and self.when_kept is not None:
                    self.when_kept(self._module)
            except BaseException:
                self._put_nothing()
                raise
            self.is_loaded = True
        self._users += 1

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self.kept:
            self.forget()

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Inside, layers are those that compute the same without the layout of `when_kept`."""
        self.forget()
        waiting, self.when_kept = self.when_kept, None
        try:
            yield
        finally:
            self.forget()
            self.when_kept = waiting

    def forget(self) -> None:
        """Let go of what was read, at the latest when it is not in use any more."""
        self.kept = False
        if self.is_loaded and not self._users:
            self._put_nothing()
            self.is_loaded = False

    def _put_nothing(self) -> None:
        for parent, name, child in self._children:
            setattr(parent, name, child)
        for place in self._places:
            place.put(place.nothing)


def offload(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Leave the weights of a module on the meta device, to be read from `tensors` whenever it is `loaded`.

    `tensors` are read one by one (`interop.stored.LazyTensors`), under the module's own names and in the
    dtype that it computes in. Whoever looks at a weight of it does so inside `loaded`.
    """
    setattr(module, _ATTRIBUTE, Offloaded(module, tensors))


def load_when_called(module: nn.Module) -> None:
    """Let an offloaded module of a foreign network be `loaded` whenever it is called."""
    forward = module.forward

    @wraps(forward)
    def within(*given: Any, **more: Any) -> Any:
        with loaded(module):
            return forward(*given, **more)

    module.forward = within


def loaded(module: nn.Module) -> AbstractContextManager[None]:
    """Inside, the weights of a module are in memory."""
    found: AbstractContextManager[None] = module.__dict__.get(_ATTRIBUTE, _NOTHING)
    return found


def offloaded(module: nn.Module) -> list[Offloaded]:
    """Every offloaded part of a network, itself included."""
    return [each.__dict__[_ATTRIBUTE] for each in module.modules() if _ATTRIBUTE in each.__dict__]


def settle(module: nn.Module) -> None:
    """Read what is offloaded in a network, for good."""
    for each in module.modules():
        if _ATTRIBUTE in each.__dict__:
            each.__dict__[_ATTRIBUTE].__enter__()
            del each.__dict__[_ATTRIBUTE]


def loaded_bytes(parts: Iterable[Offloaded]) -> int:
    """Of those that are in memory."""
    return sum(each.size_bytes for each in parts if each.is_loaded)


def _weights(module: nn.Module) -> list[tuple[str, nn.Module, str, Tensor]]:
    """Everything in its state dict: place, the module that has it, and what it is called there."""
    stored = set(module.state_dict(keep_vars=True))
    found = []
    for prefix, owner in module.named_modules():
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            place = f"{prefix}.{name}" if prefix else name
            if place in stored:
                assert tensor.is_meta, f"{place} is in memory, and would stay there"
                found.append((place, owner, name, tensor))
    return found


def _reader(tensors: Mapping[str, Tensor], name: str) -> Callable[[], Tensor]:
    return lambda: tensors[name]
