"""Requests in, events out: a queue, one worker process per device, and what happens when one of them dies."""

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lineardit.config.serving import ServingConfig
from lineardit.errors import LineardiTError
from lineardit.serving.device import Device, Facts, WorkerDiedError
from lineardit.serving.failures import closing, failed, full, lost, unknown_model
from lineardit.serving.ticket import Picture, Ticket
from lineardit.serving.waiting import WaitingRoom

_log = logging.getLogger(__name__)

ATTEMPTS = 2
"""How often a picture is tried before it is held to be what workers die of."""
_LONGEST_PAUSE = 30.0
_LONGEST_RETRY = 300


@runtime_checkable
class Meter(Protocol):
    """What the engine counts."""

    def drawn(self, pictures: int, seconds: float) -> None:
        """A batch is done."""

    def restarted(self) -> None:
        """A worker had to be started again."""


class Engine:
    """Draws what `submit` accepts. Lives in one event loop."""

    def __init__(self, config: ServingConfig, meter: Meter, command: Sequence[str] | None = None) -> None:
        """`command` starts a worker; by default the one of this package."""
        self.config, self._meter = config, meter
        self.waiting = WaitingRoom(config.limits.waiting)
        self.devices = [Device(config, name, command) for name in config.devices]
        self.models: tuple[Facts, ...] = ()
        self.is_closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._open: set[Ticket] = set()
        self._seconds_per_picture = self._seconds_per_work = 0.0

    async def start(self) -> None:
        """Load the models on every device.

        Raises:
            LineardiTError: as `Pipeline.from_pretrained`.
        """
        try:
            found = await asyncio.gather(*(device.start() for device in self.devices), return_exceptions=True)
            for fact in found:
                if isinstance(fact, BaseException):
                    raise fact
        except BaseException:
            await self.stop()
            raise
        self.models = self.devices[0].facts
        self._tasks = [asyncio.create_task(self._run(device)) for device in self.devices]

    def model(self, name: str | None = None) -> Facts:
        """What the model of this name takes, or the first without a name. Raises `Failure`."""
        found = next((facts for facts in self.models if name in (None, facts.name)), None)
        if found is None:
            raise unknown_model()
        return found

    @property
    def is_ready(self) -> bool:
        """Whether a request would be taken now."""
        return any(device.is_ready for device in self.devices) and not self.is_closing and self._has_place(1)

    @property
    def drawing(self) -> int:
        """Pictures that workers have in hand."""
        return sum(picture.open for device in self.devices for picture in device.batch)

    @property
    def queued(self) -> int:
        """Pictures that wait."""
        return len(self.waiting)

    def submit(self, ticket: Ticket) -> None:
        """Accept a request, or raise the `Failure` that says when to come back."""
        self.check_place(len(ticket.pictures))
        ticket.on_close = self._abandon
        self._open = {known for known in self._open if known.is_open} | {ticket}
        self.waiting.add(ticket.pictures)

    def check_place(self, count: int) -> None:
        """Raise the `Failure` that says when to come back unless so many pictures would be accepted now."""
        if self.is_closing:
            raise closing()
        if not self._has_place(count):
            raise full(self.retry_after())

    def retry_after(self) -> int:
        """Seconds until about half of what waits will be done, by the speed so far."""
        by_work = self.waiting.work * self._seconds_per_work
        by_count = len(self.waiting) * self._seconds_per_picture
        seconds = min(by_work, by_count) / 2 / len(self.devices)
        return max(1, min(_LONGEST_RETRY, math.ceil(seconds)))

    async def drain(self, seconds: float) -> None:
        """Accept nothing more; wait for what was accepted; after `seconds` tell the rest."""
        self.is_closing = True
        try:
            async with asyncio.timeout(seconds):
                while any(ticket.is_open for ticket in self._open):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            for ticket in self._open:
                ticket.fail(closing())

    async def stop(self) -> None:
        """End the workers."""
        self.is_closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(device.stop() for device in self.devices))
        for ticket in self._open:
            ticket.fail(closing())

    def _has_place(self, count: int) -> bool:
        return self.waiting.has_place(count)

    def _abandon(self, pictures: Sequence[Picture]) -> None:
        self.waiting.remove(pictures)
        for device in self.devices:
            device.cancel(pictures)

    async def _run(self, device: Device) -> None:
        """One device for as long as the server lives."""
        pause = 0.0
        while True:
            try:
                await device.start()
                pause = 0.0
                await self._work(device)
            except (LineardiTError, OSError) as error:  # the system may have no room for a process just now
                _log.warning("a worker is started again: %s", error)
                self._meter.restarted()
                await device.stop()
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause + 0.1)

    async def _work(self, device: Device) -> None:
        """Batch after batch, until the worker dies."""
        loop = asyncio.get_running_loop()
        while True:
            pictures = await device.unless_it_dies(self.waiting.take(device.facts[0].batch))
            pictures = [picture for picture in pictures if picture.open]
            if not pictures:
                continue
            begun = loop.time()
            try:
                kind = await device.draw(pictures)
            except WorkerDiedError:
                self._again(pictures, None)
                raise
            seconds = loop.time() - begun
            if kind is not None:
                self._again(pictures, kind)
                continue
            finished = [picture for picture in pictures if picture.finished]
            self._meter.drawn(len(finished), seconds)
            if len(finished) < len(pictures):
                continue
            self._learn(seconds / len(pictures), seconds / sum(picture.work for picture in pictures))

    def _learn(self, per_picture: float, per_work: float) -> None:
        """How fast it goes here: the last dozen batches count most."""
        share = 0.2 if self._seconds_per_work else 1.0
        self._seconds_per_picture += share * (per_picture - self._seconds_per_picture)
        self._seconds_per_work += share * (per_work - self._seconds_per_work)

    def _again(self, pictures: Sequence[Picture], kind: str | None) -> None:
        """Give what is left of a batch a second try, each alone, or say what happened.

        `kind` is the error that the worker told of, None if it died.
        """
        left = [picture for picture in pictures if picture.open]
        for picture in left:
            picture.attempts += 1
            if kind is not None and len(pictures) == 1:
                picture.ticket.fail(failed(kind))
            elif picture.attempts >= ATTEMPTS:
                picture.ticket.fail(lost())
        self.waiting.give_back([picture for picture in left if picture.open])
