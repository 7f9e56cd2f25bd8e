"""Which objects and backgrounds meet: what can be seen, and what is kept out of training."""

from collections.abc import Sequence

from lineardit.data.backgrounds import BACKGROUND_NAMES
from lineardit.data.draws import Draws, stable_hash
from lineardit.data.emoji_objects import EmojiObject
from lineardit.errors import ConfigError

_TRIES = 1000


class Composition:
    """The split by composition: which pairs are held out follows from their names, never from the seed.

    Backgrounds are ranked by it for each object, so that each object has its share of them held out and all
    others in training. Object-object pairs are unordered.
    """

    def __init__(self, objects: Sequence[EmojiObject], share: float) -> None:
        self.names = tuple(each.name for each in objects)
        self._visible: dict[str, frozenset[str]] = {}
        self._held: dict[str, frozenset[str]] = {}
        self._trained: dict[str, frozenset[str]] = {}
        for each in objects:
            visible = [name for name in BACKGROUND_NAMES if name not in each.hidden_on]
            ranked = sorted(visible, key=lambda name: stable_hash("background", each.name, name))
            held = max(1, round(share * len(visible)))
            self._visible[each.name] = frozenset(visible)
            self._held[each.name] = frozenset(ranked[:held])
            self._trained[each.name] = frozenset(ranked[held:])
        strangers: dict[str, list[str]] = {name: [] for name in self.names}
        for position, first in enumerate(self.names):
            for second in self.names[:position]:
                if stable_hash("objects", *sorted((first, second))) < share * 2**64:
                    strangers[first].append(second)
                    strangers[second].append(first)
        self._strangers = {name: tuple(others) for name, others in strangers.items()}

    def held_out_pairs(self, background: str, names: Sequence[str]) -> list[tuple[str, str]]:
        """The pairs in this scene that training never shows: (object, background) and (object, object)."""
        different = sorted(set(names))
        pairs = [(name, background) for name in different if background in self._held[name]]
        meetings = [(a, b) for i, a in enumerate(different) for b in different[i + 1 :]]
        return pairs + [(a, b) for a, b in meetings if b in self._strangers[a]]

    def draw(self, draws: Draws, count: int, held_out: bool) -> tuple[str, list[str]]:
        """A background and that many different objects: no held-out pair among them, or at least one.

        Raises: ConfigError where the objects leave no such scene.
        """
        attempt = self._held_out if held_out else self._in_training
        for _ in range(_TRIES):
            names, backgrounds = attempt(draws, count)
            if backgrounds:
                # Sets have no order of their own that would be the same everywhere.
                return draws.one_of(sorted(backgrounds)), names
        raise ConfigError(
            f"no {count} of {len(self.names)} objects meet on any background. Use more objects, or a lower "
            "held_out_share."
        )

    def _in_training(self, draws: Draws, count: int) -> tuple[list[str], frozenset[str]]:
        names = self._different(draws, [draws.one_of(self.names)], count)
        if any(a in self._strangers[b] for i, a in enumerate(names) for b in names[:i]):
            return names, frozenset()
        return names, frozenset.intersection(*(self._trained[name] for name in names))

    def _held_out(self, draws: Draws, count: int) -> tuple[list[str], frozenset[str]]:
        first = draws.one_of(self.names)
        strangers = self._strangers[first]
        if count > 1 and strangers and draws.chance(0.5):
            names = self._different(draws, [first, draws.one_of(strangers)], count)
            backgrounds = self._visible[first]
        else:
            names = self._different(draws, [first], count)
            backgrounds = self._held[first]
        backgrounds = backgrounds.intersection(*(self._visible[name] for name in names))
        return draws.shuffled(names), backgrounds

    def _different(self, draws: Draws, names: list[str], count: int) -> list[str]:
        while len(names) < count:
            name = draws.one_of(self.names)
            if name not in names:
                names.append(name)
        return names
