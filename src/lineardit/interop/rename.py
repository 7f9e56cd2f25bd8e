"""Tensors under other names: one table of rules per foreign format, read in both directions, exactly."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lineardit.errors import CheckpointError
from lineardit.interop.stored import LazyTensors, Stored, stored_of

KERNEL_1X1 = (1, 1)


class Rule(NamedTuple):
    """Where a tensor of ours comes from. `{x}` is any one part of a dotted name, the same on both sides."""

    own: str
    foreign: tuple[str, ...]
    """One name, or several whose tensors follow each other along the first axis of ours."""
    pointwise: bool = False
    """Foreign is the kernel (out, in, 1, 1) of a 1x1 convolution, ours the matrix (out, in) of a linear."""


def same(own: str, foreign: str) -> Rule:
    """The same tensor under another name."""
    return Rule(own, (foreign,))


def joined(own: str, *foreign: str) -> Rule:
    """Several foreign tensors of one size, one after the other in ours."""
    return Rule(own, foreign)


def pointwise(own: str, foreign: str) -> Rule:
    """A 1x1 convolution there, a linear layer here."""
    return Rule(own, (foreign,), pointwise=True)


def nested(own: str, foreign: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules of one part of the network, below the name the part has on each side."""
    return [
        Rule(f"{own}.{rule.own}", tuple(f"{foreign}.{name}" for name in rule.foreign), rule.pointwise)
        for rule in rules
    ]


class Renaming:
    """The tensors of one network here and in a foreign format. Both directions are bit-exact and strict.

    Raises `CheckpointError` listing every missing, unknown and differently shaped tensor, by the names that
    the given tensors have.
    """

    def __init__(self, network: str, shapes: Mapping[str, torch.Size], rules: Sequence[Rule]) -> None:
        self.network = network
        self._own = dict(shapes)
        patterns = [(rule, _pattern(rule.own)) for rule in rules]
        self._sources = {name: _source(name, patterns) for name in shapes}
        self._foreign: dict[str, torch.Size] = {}
        self._owner: dict[str, str] = {}
        for own, source in self._sources.items():
            for name in source.foreign:
                assert name not in self._owner, f"{own} and {self._owner[name]} both come from {name}"
                self._owner[name] = own
                self._foreign[name] = _foreign_shape(shapes[own], source)

    @property
    def pairs(self) -> dict[str, Rule]:
        """Each tensor of ours with the rule that it follows, its captures filled in."""
        return dict(self._sources)

    @property
    def foreign_shapes(self) -> dict[str, torch.Size]:
        """What a foreign file of this network holds."""
        return dict(self._foreign)

    def to_own(self, tensors: Mapping[str, Tensor], source: object) -> LazyTensors:
        """Foreign tensors under our names and shapes; `source` is what an error calls them: their file."""
        given = stored_of(tensors)
        self._check(given, self._foreign, source)

        def read(name: str) -> Tensor:
            rule = self._sources[name]
            parts = [tensors[part].flatten(1) if rule.pointwise else tensors[part] for part in rule.foreign]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        stored = {
            name: Stored(given[rule.foreign[0]].dtype, tuple(self._own[name]))
            for name, rule in self._sources.items()
        }
        return LazyTensors(stored, read)

    def to_foreign(self, tensors: Mapping[str, Tensor], source: object) -> LazyTensors:
        """Our tensors under the foreign names and shapes. Parts of a joined tensor are views into it."""
        given = stored_of(tensors)
        self._check(given, self._own, source)

        def read(name: str) -> Tensor:
            own = self._owner[name]
            rule, part = self._sources[own], tensors[own]
            if len(rule.foreign) > 1:
                part = part.chunk(len(rule.foreign))[rule.foreign.index(name)]
            return part[..., None, None] if rule.pointwise else part

        stored = {
            name: Stored(given[self._owner[name]].dtype, tuple(shape))
            for name, shape in self._foreign.items()
        }
        return LazyTensors(stored, read)

    def _check(self, given: Mapping[str, Stored], expected: Mapping[str, torch.Size], source: object) -> None:
        here = self._owner if expected is self._foreign else None
        check_fit(self.network, expected, given, source, here=here)


def renaming_of(network: nn.Module, rules: Sequence[Rule]) -> Renaming:
    """The renaming of all that a network stores."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    return Renaming(type(network).__name__, shapes, rules)


def check_fit(
    network: str,
    expected: Mapping[str, torch.Size],
    given: Mapping[str, Stored],
    source: object,
    here: Mapping[str, str] | None = None,
) -> None:
    """Compare names and shapes, exactly. `here` tells which of our tensors a missing foreign one belongs to.

    Raises:
        CheckpointError: lists every missing, unknown and differently shaped tensor.
    """
    owners = here or {}
    findings = {
        "missing": [_missing(name, owners.get(name, name)) for name in expected if name not in given],
        "unknown": [name for name in given if name not in expected],
        "other shape": [
            f"{name} is {given[name].shape}, the model has {tuple(shape)}"
            for name, shape in expected.items()
            if name in given and given[name].shape != tuple(shape)
        ],
    }
    lines = [f"  {what} ({len(names)}): {', '.join(names)}" for what, names in findings.items() if names]
    if lines:
        raise CheckpointError("\n".join([f"{source} does not fit {network}:", *lines]))


def _missing(name: str, owner: str) -> str:
    return name if name == owner else f"{name} (here {owner})"


def _source(own: str, patterns: Sequence[tuple[Rule, re.Pattern[str]]]) -> Rule:
    """The one rule that `own` follows, with its captures filled in."""
    found = [(rule, match) for rule, pattern in patterns if (match := pattern.fullmatch(own))]
    assert len(found) == 1, f"{own} follows {len(found)} rules instead of one"
    rule, match = found[0]
    return Rule(own, tuple(name.format(**match.groupdict()) for name in rule.foreign), rule.pointwise)


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+)", re.escape(template)))


def _foreign_shape(shape: torch.Size, source: Rule) -> torch.Size:
    if len(source.foreign) > 1:
        shape = torch.Size((shape[0] // len(source.foreign), *shape[1:]))
    return torch.Size((*shape, *KERNEL_1X1)) if source.pointwise else shape
