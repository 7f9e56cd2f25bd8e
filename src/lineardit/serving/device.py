"""The server's side of one worker process: started, asked to draw, listened to, and ended."""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lineardit.errors as errors
from lineardit.config.serving import ServingConfig
from lineardit.errors import InputError, LineardiTError
from lineardit.interop.bundled import BUNDLED
from lineardit.serving.frames import Frame, FrameError, pack, receive_frame
from lineardit.serving.ticket import Finished, Note, Partial, Picture, Pixels, Progress

WORKER = (sys.executable, "-m", "lineardit.serving.worker")

_BUFFER = 1 << 22

Result = TypeVar("Result")


def model_names(models: Sequence[str]) -> dict[str, str | None]:
    """Where the models to serve lie, by the names that requests use; None is the bundled one.

    Pictures and answers name the model, and must not tell where it lies: it is called by its last part.

    Raises:
        InputError: two have one name.
    """
    places = [None if place == BUNDLED and not Path(place).exists() else place for place in models] or [None]
    found: dict[str, str | None] = {}
    for place in places:
        name = BUNDLED if place is None else Path(place).resolve().name
        if name in found:
            raise InputError(f"two models are called {name}. Rename the folder of one of them.")
        found[name] = place
    return found


class Facts(NamedTuple):
    """What a worker says of a model once it is loaded."""

    name: str
    device: str
    dtype: str
    batch: int
    """Pictures denoised together."""
    unit: int
    """Height and width are multiples of it."""
    size: int
    """Height and width where none is asked for."""
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    """The one that the model was made for."""
    samplers: tuple[str, ...]


class WorkerDiedError(LineardiTError):
    """The process ended, hung, or said what makes no sense."""

    def __init__(self, device: str) -> None:
        super().__init__(f"the process that draws on {device} ended; its last words, if any, are above.")


class Device:
    """One device with the process that owns it. `start` after `stop` gives a fresh one."""

    def __init__(self, config: ServingConfig, name: str, command: Sequence[str] | None = None) -> None:
        self._config, self._name, self._command = config, name, tuple(command or WORKER)
        self._process: asyncio.subprocess.Process | None = None
        self._models = model_names(config.models)
        self._facts: tuple[Facts, ...] = ()
        self._numbers = itertools.count(1)
        self._number = 0
        self.batch: list[Picture] = []
        """What is being drawn."""

    @property
    def facts(self) -> tuple[Facts, ...]:
        """What the loaded models take, the one that is meant without a name first."""
        assert self._facts
        return self._facts

    @property
    def is_ready(self) -> bool:
        """Whether its process is there, with its models loaded."""
        return bool(self._facts)

    @property
    def process_id(self) -> int | None:
        """Of the worker, where there is one."""
        return None if self._process is None else self._process.pid

    async def start(self) -> tuple[Facts, ...]:
        """Start the process and wait until its models are loaded, unless that was done before.

        Raises:
            LineardiTError: as `Pipeline.from_pretrained`.
            WorkerDiedError: the process ended without a word.
        """
        if self._facts:
            return self._facts
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_BUFFER
        )
        order = {
            "type": "load",
            "models": self._models,
            "device": self._name,
            "dtype": self._config.dtype,
            "kernels": self._config.kernels,
            "compile": self._config.compile,
            "quantize": self._config.quantize,
            "memory": self._config.memory,
            "keep_freed": self._config.keep_freed,
            "batch": self._config.batch,
        }
        await self._send(order)
        message = (await self._receive(self._config.load_seconds)).message
        if message["type"] == "failed":
            kind = getattr(errors, str(message["kind"]), LineardiTError)
            raise kind(message["message"])
        self._facts = tuple(
            Facts(**{**facts, "samplers": tuple(facts["samplers"])}) for facts in message["models"]
        )
        return self._facts

    async def stop(self) -> None:
        """End the process: it does so itself when its input ends, and is killed if it hangs."""
        process, self._facts, self.batch = self._process, (), []
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(2):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._process = None

    async def unless_it_dies(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await something else while the process is idle; `WorkerDiedError` if that ends meanwhile."""
        assert self._process is not None
        dead, doing = asyncio.ensure_future(self._process.wait()), asyncio.ensure_future(work)
        try:
            await asyncio.wait((dead, doing), return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            raise WorkerDiedError(self._name)
        finally:
            dead.cancel()
            doing.cancel()

    async def draw(self, pictures: Sequence[Picture]) -> str | None:
        """Draw pictures together and tell their tickets; the kind of error if the worker says it cannot.

        Raises:
            WorkerDiedError: some of the pictures may be finished.
        """
        self.batch, self._number = list(pictures), next(self._numbers)
        await self._send(
            {
                "type": "draw",
                "batch": self._number,
                "jobs": [dict(picture.settings) for picture in pictures],
                "partials": [list(picture.partials) for picture in pictures],
                "previews": [picture.ticket.previews for picture in pictures],
            },
            b"".join(picture.initial.data for picture in pictures if picture.initial is not None),
        )
        # Somebody may have left before the worker could be told.
        self.cancel([picture for picture in pictures if not picture.open])
        # One step or one decoding of a large picture says nothing, and may take what its request may.
        longest = max(self._config.stall_seconds, self._config.limits.seconds)
        try:
            while True:
                frame = await self._receive(longest)
                match frame.message["type"]:
                    case "done":
                        return None
                    case "failed":
                        return str(frame.message["kind"])
                    case _:
                        self._tell(frame)
        except (KeyError, IndexError, TypeError, ValueError):
            raise WorkerDiedError(self._name) from None
        finally:
            self.batch = []

    def cancel(self, pictures: Sequence[Picture]) -> None:
        """Tell the worker which of its pictures nobody waits for; it stops between two steps."""
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            return
        for picture in pictures:
            for row, drawn in enumerate(self.batch):
                if drawn is picture:
                    process.stdin.write(pack({"type": "cancel", "batch": self._number, "row": row}))

    def _tell(self, frame: Frame) -> None:
        message, payload = frame
        if message["batch"] != self._number:
            raise WorkerDiedError(self._name)
        match message["type"]:
            case "step":
                self._tell_step(message, payload)
            case "note":
                picture = self.batch[message["row"]]
                picture.ticket.tell(Note(picture.index, message["text"]))
            case "partial":
                picture, pixels = self.batch[message["row"]], _pixels(message, payload)
                picture.ticket.tell(Partial(picture.index, message["number"], pixels))
            case "picture":
                picture, pixels = self.batch[message["row"]], _pixels(message, payload)
                wanted = (picture.settings["width"], picture.settings["height"])
                if (pixels.width, pixels.height) != wanted:
                    raise WorkerDiedError(self._name)
                picture.ticket.tell(Finished(picture.index, pixels))
            case _:
                raise WorkerDiedError(self._name)

    def _tell_step(self, message: dict[str, Any], payload: bytes) -> None:
        previews: dict[int, Pixels] = {}
        if message["rows"]:
            size = len(payload) // len(message["rows"])
            for number, row in enumerate(message["rows"]):
                previews[row] = _pixels(message, payload[number * size : (number + 1) * size])
        for row, picture in enumerate(self.batch):
            if picture.open:
                progress = Progress(picture.index, message["step"], message["total"], previews.get(row))
                picture.ticket.tell(progress)

    async def _send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(pack(message, payload))
            await self._process.stdin.drain()
        except (OSError, RuntimeError):
            raise WorkerDiedError(self._name) from None

    async def _receive(self, seconds: float) -> Frame:
        assert self._process is not None and self._process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                frame = await receive_frame(self._process.stdout)
        except TimeoutError:  # before OSError, of which it is one
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            frame = None
        except (FrameError, OSError):
            frame = None
        if frame is None:
            raise WorkerDiedError(self._name)
        return frame


def _pixels(message: dict[str, Any], payload: bytes) -> Pixels:
    pixels = Pixels(message["width"], message["height"], payload)
    if len(payload) != 3 * pixels.width * pixels.height:
        raise ValueError("a picture of another size than it says")
    return pixels
