"""The queue: bounded, first come first served, except that pictures of one kind go together."""

import asyncio
from collections.abc import Iterable, Sequence

from lineardit.serving.ticket import Picture, Ticket, Waiting


class WaitingRoom:
    """Pictures that no worker has taken yet."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._pictures: list[Picture] = []
        self._news = asyncio.Event()
        self._announced: dict[Ticket, int] = {}

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def work(self) -> int:
        """Pixels times steps of all."""
        return sum(picture.work for picture in self._pictures)

    def has_place(self, count: int) -> bool:
        """Whether so many more fit."""
        return len(self) + count <= self.capacity

    def add(self, pictures: Sequence[Picture]) -> None:
        """Queue up."""
        self._pictures.extend(pictures)
        self._changed()

    def give_back(self, pictures: Sequence[Picture]) -> None:
        """Back to the head of the queue, whatever its capacity: these were accepted before."""
        self._pictures[:0] = pictures
        self._changed()

    def remove(self, pictures: Iterable[Picture]) -> None:
        """Nobody waits for these any more."""
        gone = set(map(id, pictures))
        self._pictures = [picture for picture in self._pictures if id(picture) not in gone]
        self._changed()

    async def take(self, most: int) -> list[Picture]:
        """The first picture, with up to `most - 1` others that can be drawn together with it.

        A picture that a worker has given back comes alone: it may be the one that the worker died of.
        """
        while not self._pictures:
            self._news.clear()
            await self._news.wait()
        first = self._pictures[0]
        fitting = [
            picture for picture in self._pictures if picture.kind == first.kind and not picture.attempts
        ]
        taken = [first] if first.attempts else fitting[:most]
        self.remove(taken)
        return taken

    def _changed(self) -> None:
        self._news.set()
        positions = {
            ticket: position
            for position, ticket in enumerate(dict.fromkeys(picture.ticket for picture in self._pictures))
        }
        for ticket, position in positions.items():
            if self._announced.get(ticket) != position:
                ticket.tell(Waiting(position))
        self._announced = positions
