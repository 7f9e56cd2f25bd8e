"""The process that owns one device: `python -m lineardit.serving.worker`, spoken to in frames over its pipes.

    in    load     models, device, dtype, kernels, compile,     once, first: {name: place}
                   quantize, memory, keep_freed, batch
          draw     batch, jobs, partials, previews          bytes: pixels to start from, if any
          cancel   batch, row
    out   ready    models: what each takes, and how many pictures are drawn together
          step     batch, step, total, rows                 bytes: previews of these rows, if wanted
          note     batch, row, text
          partial  batch, row, number, width, height        bytes: pixels
          picture  batch, row, width, height                bytes: pixels
          done     batch
          failed   batch (null while loading), kind, message

It ends as soon as its input does, so that none outlives the server, whatever ended that. The signals that
end a server reach the whole group of processes: a worker ignores them, since the server still needs it.
"""

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lineardit.data.pictures import to_picture
from lineardit.diffusion.states import State
from lineardit.errors import LineardiTError, NotFiniteError
from lineardit.kernels import native
from lineardit.kernels.allocator import ask_for_large_pages, keep_freed_memory, return_freed_memory
from lineardit.pipeline import Pipeline, Settings
from lineardit.serving.frames import Frame, FrameError, pack, read_frame
from lineardit.serving.preview import Colours

_log = logging.getLogger(__name__)

_PREVIEW_SECONDS = 0.1
_LONGEST_NOTE = 500


class Orders:
    """What the server wants, read by a thread of its own so that a cancellation is seen between two steps."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._waiting: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._cancelled: set[tuple[int, int]] = set()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Frame:
        """The next message that asks for work."""
        return self._waiting.get()

    def is_cancelled(self, batch: int, row: int) -> bool:
        """Whether nobody waits for this picture any more."""
        return (batch, row) in self._cancelled

    def forget(self, batch: int) -> None:
        """Drop what was said about a batch that is finished."""
        self._cancelled = {entry for entry in self._cancelled if entry[0] > batch}

    def _read(self) -> None:
        try:
            while (frame := read_frame(self._stream)) is not None:
                message = frame.message
                if message["type"] == "cancel":
                    self._cancelled.add((message["batch"], message["row"]))
                else:
                    self._waiting.put(frame)
        except (FrameError, OSError, KeyError):
            pass
        # The server is gone: nobody is left to draw for.
        os._exit(0)


class Worker:
    """Loaded models that draw batches and say what they do.

    `memory` bounds what this process takes, in bytes; of several models only the one that draws has room.
    """

    def __init__(
        self,
        pipes: Mapping[str, Pipeline],
        orders: Orders,
        output: BufferedIOBase,
        together: int,
        memory: int | None = None,
        *,
        keep_freed: bool = True,
    ) -> None:
        self._pipes, self._orders, self._output, self._together = pipes, orders, output, together
        self._memory, self._keep_freed, self._has_room = memory, keep_freed, ""
        self._colours = {name: Colours.fit(pipe.autoencoder) for name, pipe in pipes.items()}

    def facts(self, name: str) -> dict[str, Any]:
        """What the server has to know of a model to check requests."""
        pipe = self._pipes[name]
        return {
            "name": name,
            "device": str(pipe.device),
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "batch": 1 if pipe.device.type == "cpu" or pipe.is_bounded else self._together,
            "unit": pipe.autoencoder.config.stride * pipe.transformer.config.patch_size,
            "size": pipe.sampling.size,
            "num_inference_steps": pipe.sampling.num_inference_steps,
            "guidance_scale": pipe.sampling.guidance_scale,
            "sampler": pipe.sampling.sampler,
            "samplers": list(pipe.samplers),
        }

    def serve(self) -> None:
        """Draw what is asked for until the input ends."""
        self.say({"type": "ready", "models": [self.facts(name) for name in self._pipes]})
        while True:
            order, payload = self._orders.next()
            batch = order["batch"]
            try:
                self._draw(order, payload)
            except LineardiTError as error:
                self._failed(batch, type(error).__name__, str(error))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                self._failed(batch, "OutOfMemory", "the device has too little memory for this picture")
            except torch.AcceleratorError:
                # No later call on a CUDA device succeeds: only a fresh process draws. An answer would let
                # the server send this one the next pictures while it ends.
                _log.exception("the device failed")
                os._exit(1)
            except Exception:
                _log.exception("a batch failed")
                self._failed(batch, "Internal", "see the log of the server")
            else:
                self.say({"type": "done", "batch": batch})
            self._orders.forget(batch)

    def say(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        """Send one frame."""
        self._output.write(pack(message, payload))
        self._output.flush()

    def _failed(self, batch: int, kind: str, message: str) -> None:
        self.say({"type": "failed", "batch": batch, "kind": kind, "message": message})

    def _draw(self, order: Mapping[str, Any], payload: bytes) -> None:
        batch: int = order["batch"]
        jobs = [Settings(**job) for job in order["jobs"]]
        first, name = jobs[0], jobs[0].model
        pipe = self._pipes[name]
        self._make_room(name)
        pipe.check_memory(first.height, first.width, from_picture=bool(payload), step_cache=first.step_cache)
        initial = pipe.encode(_pictures(payload, jobs), jobs[0]) if payload else None
        partials: list[list[int]] = order["partials"]
        wants_preview: list[bool] = order["previews"]
        shown = 0.0
        states = pipe.states(jobs, self._embed(pipe, batch, jobs), initial)
        for state in states:
            rows = [row for row in range(len(jobs)) if not self._orders.is_cancelled(batch, row)]
            if not rows:
                return
            if state.step == state.total:
                self._step(batch, state, [], self._colours[name])
                states.close()  # and with it what the steps shared
                for row in rows:
                    self._picture(pipe, "picture", batch, row, state.latents)
                return
            looking = [row for row in rows if wants_preview[row]]
            if looking and time.monotonic() - shown < _PREVIEW_SECONDS:
                looking = []
            elif looking:
                shown = time.monotonic()
            self._step(batch, state, looking, self._colours[name])
            for row in rows:
                if state.step in partials[row]:
                    number = partials[row].index(state.step)
                    self._picture(pipe, "partial", batch, row, state.denoised, number=number)

    def _make_room(self, name: str) -> None:
        """What the other models have read waits in its files again, and what is held is counted anew."""
        if self._memory is None or self._has_room == name:
            return
        for each in (*self._pipes.values(), self._pipes[name]):
            each.limit_memory(self._memory, keep_freed=self._keep_freed)
        self._has_room = name

    def _embed(self, pipe: Pipeline, batch: int, jobs: Sequence[Settings]) -> Any:
        """Each prompt read alone, so that its embedding is the same in any batch, then padded together."""
        found = []
        for row, job in enumerate(jobs):
            with _warnings_of("lineardit.text") as warnings:
                found.append(pipe.embed([job]))
            for text in warnings:
                note = {"type": "note", "batch": batch, "row": row, "text": text[:_LONGEST_NOTE]}
                self.say(note)
        return pipe.joined(found)

    def _step(self, batch: int, state: State, looking: Sequence[int], paint: Colours) -> None:
        height, width = state.denoised.shape[-2:]
        colours = [paint(state.denoised[row]).contiguous().numpy().tobytes() for row in looking]
        message = {"type": "step", "batch": batch, "step": state.step, "total": state.total}
        self.say({**message, "rows": list(looking), "width": width, "height": height}, b"".join(colours))

    def _picture(self, pipe: Pipeline, kind: str, batch: int, row: int, latents: Tensor, **more: int) -> None:
        # Decoded alone, so that the pixels are the same in any batch.
        pixels = pipe.decode(latents[row : row + 1])[0]
        if not torch.isfinite(pixels).all():
            raise NotFiniteError("the picture has pixels that are no numbers: try another dtype.")
        picture = to_picture(pixels)
        about = {"type": kind, "batch": batch, "row": row, "width": picture.width, "height": picture.height}
        self.say({**about, **more}, picture.tobytes())


def main() -> None:
    """Load the models that the first frame names, then draw until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Whatever a library prints must not get between frames.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    orders = Orders(os.fdopen(os.dup(0), "rb"))
    order = orders.next().message
    try:
        pipes = loaded(order)
        memory, keeps = order["memory"], order["keep_freed"]
        worker = Worker(pipes, orders, output, order["batch"], memory, keep_freed=keeps)
    except LineardiTError as error:
        failed = {"type": "failed", "batch": None, "kind": type(error).__name__, "message": str(error)}
        output.write(pack(failed))
        output.flush()
        return
    worker.serve()


def loaded(order: Mapping[str, Any]) -> dict[str, Pipeline]:
    """The models of the first order, and what computes them chosen as `lineardit generate` does.

    Within a bound of memory weights stay in their files until they are at work.

    Raises:
        LineardiTError: as `Pipeline.from_pretrained` and `native.use`.
    """
    memory: int | None = order["memory"]
    if order["keep_freed"] and memory is None:
        ask_for_large_pages()
    pipes = {
        name: Pipeline.from_pretrained(
            place, device=order["device"], dtype=order["dtype"], offload=memory is not None
        )
        for name, place in order["models"].items()
    }
    on_cpu = any(pipe.device.type == "cpu" for pipe in pipes.values())
    if on_cpu or order["kernels"] == "torch":
        native.use(order["kernels"])
    if on_cpu:
        if order["keep_freed"] and memory is None:
            keep_freed_memory()
        else:
            return_freed_memory()
    for pipe in pipes.values():
        if order["quantize"] is not None:
            pipe.quantize()
        if order["compile"]:
            pipe.compile()
        pipe.pack()
        pipe.limit_memory(memory, keep_freed=order["keep_freed"])
    return pipes


def _pictures(payload: bytes, jobs: Sequence[Settings]) -> list[Image.Image]:
    """Pixels to start from, one picture after the other, each of the size of its job."""
    sizes = [(job.width, job.height) for job in jobs]
    each = len(payload) // len(jobs)
    parts = [payload[each * row : each * (row + 1)] for row in range(len(jobs))]
    return [Image.frombytes("RGB", size, part) for size, part in zip(sizes, parts, strict=True)]


@contextmanager
def _warnings_of(name: str) -> Iterator[list[str]]:
    """What a part of the package warns of: it goes to whoever asked, not to the log."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger(name), Keep(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


if __name__ == "__main__":
    if sys.stdin is None or sys.stdin.isatty():
        sys.exit("this process is started by `lineardit serve`")
    main()
