"""Which objects and backgrounds meet: what can be seen, and what is kept out of training."""

from collections.abc import Sequence

from lineardit.data.backgrounds import BACKGROUND_NAMES
from lineardit.data.draws import Draws, stable_hash
from lineardit.data.emoji_objects import EmojiObject

_TRIES = 1000


class Composition:
    """The split by composition: held-out pairs are chosen by a hash of their names, not of the seed.

    Object-background pairs are ranked for each object, so that each has its share of backgrounds held out
    and all others in training; object-object pairs are unordered.
    """

    def __init__(self, objects: Sequence[EmojiObject], share: float) -> None:
        self.names = tuple(each.name for each in objects)
        self.seen: dict[str, tuple[str, ...]] = {}
        self.held: dict[str, frozenset[str]] = {}
        for each in objects:
            visible = [name for name in BACKGROUND_NAMES if name not in each.hidden_on]
            ranked = sorted(visible, key=lambda name: stable_hash("background", each.name, name))
            held = frozenset(ranked[: max(1, round(share * len(visible)))])
            self.held[each.name] = held
            self.seen[each.name] = tuple(visible)
        threshold = int(share * 2**64)
        self.partners: dict[str, frozenset[str]] = {name: frozenset() for name in self.names}
        held_pairs: dict[str, set[str]] = {name: set() for name in self.names}
        for position, first in enumerate(self.names):
            for second in self.names[:position]:
                if stable_hash("objects", *sorted((first, second))) < threshold:
                    held_pairs[first].add(second)
                    held_pairs[second].add(first)
        self.partners = {name: frozenset(others) for name, others in held_pairs.items()}
        """The objects that each object never meets in training."""

    def held_out_pairs(self, background: str, names: Sequence[str]) -> list[tuple[str, str]]:
        """The pairs in this scene that training never shows: (object, background) and (object, object)."""
        different = sorted(set(names))
        pairs = [(name, background) for name in different if background in self.held[name]]
        pairs += [(a, b) for i, a in enumerate(different) for b in different[i + 1 :] if b in self.partners[a]]
        return pairs

    def draw(self, draws: Draws, count: int, held_out: bool) -> tuple[str, list[str]]:
        """A background and that many different objects: no held-out pair among them, or at least one."""
        for _ in range(_TRIES):
            names, background = self._held_out(draws, count) if held_out else self._in_training(draws, count)
            if background:
                return background, names
        raise AssertionError(f"no {count} of {len(self.names)} objects can be seen together")

    def _in_training(self, draws: Draws, count: int) -> tuple[list[str], str | None]:
        names: list[str] = []
        while len(names) < count:
            name = draws.one_of(self.names)
            if name not in names and not any(name in self.partners[other] for other in names):
                names.append(name)
        allowed = [
            each for each in self._visible(names) if not any(each in self.held[name] for name in names)
        ]
        return names, draws.one_of(allowed) if allowed else None

    def _held_out(self, draws: Draws, count: int) -> tuple[list[str], str | None]:
        names = [draws.one_of(self.names)]
        partners = sorted(self.partners[names[0]])
        by_object = count > 1 and bool(partners) and draws.chance(0.5)
        if by_object:
            names.append(draws.one_of(partners))
        while len(names) < count:
            name = draws.one_of(self.names)
            if name not in names:
                names.append(name)
        allowed = [each for each in self._visible(names) if by_object or each in self.held[names[0]]]
        return draws.shuffled(names), draws.one_of(allowed) if allowed else None

    def _visible(self, names: Sequence[str]) -> list[str]:
        return [each for each in self.seen[names[0]] if all(each in self.seen[name] for name in names[1:])]
