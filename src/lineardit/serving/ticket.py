"""One request on its way through the house: what was asked for, and what has happened to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lineardit.config.steps import steps_drawn
from lineardit.serving.failures import Failure


class Pixels(NamedTuple):
    """8-bit RGB, row by row."""

    width: int
    height: int
    data: bytes


@dataclass(frozen=True)
class Waiting:
    """In the queue."""

    position: int
    """Requests ahead of this one."""


@dataclass(frozen=True)
class Progress:
    """A step is done."""

    index: int
    step: int
    total: int
    preview: Pixels | None
    """One pixel per latent."""


@dataclass(frozen=True)
class Partial:
    """The picture as it would be if the rest were easy."""

    index: int
    number: int
    pixels: Pixels


@dataclass(frozen=True)
class Note:
    """Something to know about a picture, such as words that were cut off."""

    index: int
    text: str


@dataclass(frozen=True)
class Finished:
    """A picture."""

    index: int
    pixels: Pixels


Event = Waiting | Progress | Partial | Note | Finished


@dataclass(eq=False)
class Picture:
    """One picture of a request."""

    ticket: "Ticket"
    index: int
    """Which of the request."""
    settings: Mapping[str, Any]
    """The fields of `lineardit.pipeline.Settings`."""
    initial: Pixels | None = None
    """What to start from, in the size of the picture."""
    partials: Sequence[int] = ()
    """Steps after which it is decoded and shown."""
    attempts: int = 0
    """Times that a worker gave it back: from the first on it is drawn alone."""
    open: bool = True
    """Whether anybody waits for it."""
    finished: bool = False

    @property
    def kind(self) -> tuple[object, ...]:
        """Pictures of one kind are denoised together: the work is the same, number by number."""
        names = ("model", "height", "width", "num_inference_steps", "sampler", "strength")
        return (*(self.settings[name] for name in names), self.settings["guidance_scale"] != 1)

    @property
    def steps(self) -> int:
        """Steps that are computed."""
        return steps_drawn(self.settings["num_inference_steps"], self.settings["strength"])

    @property
    def work(self) -> int:
        """Pixels times steps."""
        size: int = self.settings["height"] * self.settings["width"]
        return size * self.steps


@dataclass(eq=False)
class Ticket:
    """A request that was accepted. Iterating it gives events until the last picture.

    An event that nobody has read yet is replaced by the next one of its kind, so a slow reader costs no
    more than one preview and its pictures.
    """

    previews: bool = False
    pictures: list[Picture] = field(default_factory=list)
    on_close: Callable[[Sequence[Picture]], None] | None = None
    """Told which pictures nobody waits for any more."""
    _events: dict[tuple[object, ...], Event] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _failure: Failure | None = None
    _closed: bool = False

    def tell(self, event: Event) -> None:
        """Something happened."""
        if self._closed:
            return
        key = _key(event)
        self._events.pop(key, None)
        self._events[key] = event
        if isinstance(event, Finished):
            picture = self.pictures[event.index]
            picture.open, picture.finished = False, True
        self._news.set()

    def fail(self, failure: Failure) -> None:
        """Nothing more will come. What was finished before is still handed out."""
        if self._failure is None and self.is_open:
            self._failure = failure
            self._give_up()
            self._news.set()

    def cancel(self) -> None:
        """Nobody reads this any more."""
        self._closed = True
        self._events.clear()
        self._give_up()
        self._news.set()

    @property
    def is_open(self) -> bool:
        """Whether pictures are still to come."""
        return any(picture.open for picture in self.pictures)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events in the order they happened. Raises `Failure` where the request failed."""
        while True:
            while self._events:
                key = next(iter(self._events))
                yield self._events.pop(key)
            if self._failure is not None:
                raise self._failure
            if self._closed or not self.is_open:
                return
            self._news.clear()
            await self._news.wait()

    def _give_up(self) -> None:
        abandoned = [picture for picture in self.pictures if picture.open]
        for picture in abandoned:
            picture.open = False
        if abandoned and self.on_close is not None:
            self.on_close(abandoned)


def _key(event: Event) -> tuple[object, ...]:
    match event:
        case Waiting():
            return (Waiting,)
        case Partial():
            return (Partial, event.index, event.number)
        case Note():
            return (Note, event.index, event.text)
        case _:
            return (type(event), event.index)
