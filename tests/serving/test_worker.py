"""A real worker process, spoken to in frames: its pictures are those of the pipeline, alone or together."""

import subprocess
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lineardit.cli.app import main
from lineardit.data.pictures import to_picture
from lineardit.errors import InputError
from lineardit.kernels import native
from lineardit.nn.offload import offloaded
from lineardit.pipeline import Pipeline, Settings
from lineardit.serving.device import WORKER, Facts
from lineardit.serving.failures import failed
from lineardit.serving.frames import Frame, pack, read_frame
from lineardit.serving.worker import Orders, Worker, loaded

CAT = "a red apple left of a cat"
LOADED = {
    **{"device": "cpu", "dtype": "fp32", "kernels": "auto", "compile": False, "quantize": None},
    **{"memory": None, "keep_freed": True},
}


class Speaker:
    """The server's end of the pipes."""

    def __init__(self, model: str) -> None:
        self.process = subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.say(type="load", models={"tiny": model}, batch=8, **LOADED)
        self.first = self.hear().message

    def say(self, payload: bytes = b"", **message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(pack(message, payload))
        self.process.stdin.flush()

    def hear(self) -> Frame:
        assert self.process.stdout is not None
        frame = read_frame(self.process.stdout)
        assert frame is not None
        return frame

    def draw(self, batch: int, *jobs: dict[str, Any], **options: Any) -> list[Frame]:
        more = {"partials": [[]] * len(jobs), "previews": [False] * len(jobs), **options}
        self.say(type="draw", batch=batch, jobs=list(jobs), **more)
        found = [self.hear()]
        while found[-1].message["type"] not in ("done", "failed"):
            found.append(self.hear())
        return found

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def job(prompt: str = CAT, seed: int = 7, **settings: Any) -> dict[str, Any]:
    usual = {
        "negative_prompt": "",
        "height": 16,
        "width": 24,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
    }
    return {"prompt": prompt, "seed": seed, "sampler": "dpm++", "model": "tiny", **usual, **settings}


@pytest.fixture(scope="module")
def worker(tiny_model: Path) -> Iterator[Speaker]:
    speaker = Speaker(str(tiny_model))
    yield speaker
    # Without a server there is nobody to draw for: it ends in the middle of its work.
    speaker.say(type="draw", batch=99, jobs=[job(num_inference_steps=900)], partials=[[]], previews=[False])
    speaker.close()
    assert speaker.process.returncode == 0


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_model, device="cpu")


@pytest.fixture(autouse=True)
def passes_as_in_the_worker() -> None:
    native.use("auto")


def drawn(pipe: Pipeline, *jobs: dict[str, Any]) -> list[bytes]:
    return [picture.tobytes() for picture in pipe.draw([Settings(**each) for each in jobs]).images]


def test_it_says_what_the_model_takes(worker: Speaker, pipe: Pipeline) -> None:
    assert worker.first["type"] == "ready"
    (message,) = worker.first["models"]
    assert set(message) == set(Facts._fields)
    assert message["unit"] == 8 and message["size"] == 24 and message["name"] == "tiny"
    assert message["batch"] == 1  # on a CPU each picture is drawn alone


def test_a_picture_is_that_of_the_pipeline_to_the_bit(worker: Speaker, pipe: Pipeline) -> None:
    frames = worker.draw(1, job(), partials=[[1, 2]], previews=[True])
    kinds = [frame.message["type"] for frame in frames]
    assert kinds == ["step", "partial", "step", "partial", "step", "picture", "done"]
    assert frames[-2].payload == drawn(pipe, job())[0]
    states = list(pipe.states([Settings(**job())]))
    for frame, state in zip((frames[1], frames[3]), states[:2], strict=True):
        assert frame.payload == to_picture(pipe.decode(state.denoised)[0]).tobytes()
    preview = frames[0]
    assert preview.message["rows"] == [0] and len(preview.payload) == 3 * 4 * 6


def test_a_picture_is_that_of_generate_to_the_bit(worker: Speaker, tiny_model: Path, tmp_path: Path) -> None:
    options = ["--model", str(tiny_model), "--height", "16", "--width", "24", "--device", "cpu"]
    place = tmp_path / "cat.png"
    assert main(["generate", CAT, *options, "--seed", "7", "--no-keep-freed", "-o", str(place)]) == 0
    with Image.open(place) as picture:
        assert worker.draw(9, job())[-2].payload == picture.convert("RGB").tobytes()


def test_it_computes_as_it_is_told(tiny_model: Path) -> None:
    order = {"models": {"tiny": str(tiny_model)}, **LOADED, "keep_freed": False}
    assert loaded(order)["tiny"] and native.is_in_use() == (native.refusal() is None)
    assert not loaded(order)["tiny"].is_quantized
    (quantized,) = loaded({**order, "kernels": "torch", "quantize": "int8"}).values()
    assert quantized.is_quantized
    assert not native.is_in_use()
    with pytest.raises(InputError, match="kernels='fast' is not known"):
        loaded({**order, "kernels": "fast"})


class OneOrder(Orders):
    """One picture is asked for, and then nothing."""

    def __init__(self) -> None:
        self._frames, self._cancelled = [Frame({"type": "draw", "batch": 3, "jobs": [job()]}, b"")], set()

    def next(self) -> Frame:
        return self._frames.pop()


def test_what_does_not_fit_its_bound_of_memory_is_refused_before_it_is_drawn(tiny_model: Path) -> None:
    (pipe,) = loaded({"models": {"tiny": str(tiny_model)}, **LOADED, "memory": 10**6}).values()
    output = BytesIO()
    with pytest.raises(IndexError):
        Worker({"tiny": pipe}, OneOrder(), output, 8).serve()
    output.seek(0)
    ready, refused = read_frame(output), read_frame(output)
    assert ready is not None and refused is not None
    assert refused.message["type"] == "failed" and refused.message["kind"] == "MemoryLimitError"
    assert failed("MemoryLimitError").status == 507


def test_after_an_error_of_the_device_itself_the_process_ends(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(status: int) -> None:
        raise SystemExit(status)

    class Broken(Worker):
        def _draw(self, order: Mapping[str, Any], payload: bytes) -> None:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("lineardit.serving.worker.os._exit", end)
    output = BytesIO()
    with pytest.raises(SystemExit) as ended:
        Broken(loaded({"models": {"tiny": str(tiny_model)}, **LOADED}), OneOrder(), output, 8).serve()
    output.seek(0)
    ready = read_frame(output)
    assert ended.value.code == 1 and ready is not None and ready.message["type"] == "ready"
    # Without an answer the picture is tried once more, by the process that comes after.
    assert read_frame(output) is None


class Orderly(Orders):
    """One picture of each of these models after the other."""

    def __init__(self, *models: str) -> None:
        orders = [
            {"type": "draw", "batch": 3, "jobs": [job(model=model)], "partials": [[]], "previews": [False]}
            for model in models
        ]
        self._frames, self._cancelled = [Frame(order, b"") for order in reversed(orders)], set()

    def next(self) -> Frame:
        return self._frames.pop()


def test_within_a_bound_only_the_model_that_draws_has_its_weights_in_memory(tiny_model: Path) -> None:
    order = {"models": {"tiny": str(tiny_model), "other": str(tiny_model)}, **LOADED, "memory": 10**11}
    pipes = loaded(order)
    blocks = {name: offloaded(pipe.transformer) for name, pipe in pipes.items()}
    output, seen = BytesIO(), []

    class Watching(Worker):
        def say(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
            super().say(message, payload)
            if message["type"] == "picture":
                seen.append([name for name, each in blocks.items() if each[0].is_loaded])

    with pytest.raises(IndexError):
        Watching(pipes, Orderly("tiny", "tiny", "other", "tiny"), output, 8, order["memory"]).serve()
    assert seen == [["tiny"], ["tiny"], ["other"], ["tiny"]]
    output.seek(0)
    frames = [frame for frame in iter(lambda: read_frame(output), None) if frame.message["type"] == "picture"]
    with native.using("auto"):
        (alone,) = drawn(Pipeline.from_pretrained(tiny_model, device="cpu"), job())
    assert [frame.payload for frame in frames] == [alone] * 4


def test_pictures_denoised_together_are_those_made_alone(worker: Speaker, pipe: Pipeline) -> None:
    jobs = [job(seed=seed, prompt=prompt) for seed, prompt in ((1, CAT), (2, "two dogs"), (3, "a house"))]
    frames = [frame for frame in worker.draw(2, *jobs) if frame.message["type"] == "picture"]
    assert [frame.message["row"] for frame in frames] == [0, 1, 2]
    for frame, alone in zip(frames, drawn(pipe, *jobs), strict=True):
        one, other = (
            torch.frombuffer(bytearray(data), dtype=torch.uint8).int() for data in (frame.payload, alone)
        )
        # Products of other shapes round in other places: at most one level of 255, in hardly any place.
        assert (one - other).abs().max() <= 1 and (one != other).float().mean() < 0.01
    assert len({frame.payload for frame in frames}) == 3


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_embeddings_of_single_jobs_are_those_of_the_batch(pipe: Pipeline, scale: float) -> None:
    jobs = [Settings(**job(prompt=prompt, guidance_scale=scale)) for prompt in (CAT, "two dogs")]
    together, stacked = pipe.embed(jobs), pipe.joined([pipe.embed([each]) for each in jobs])
    assert torch.equal(stacked.mask, together.mask)
    kept = together.mask.bool()
    torch.testing.assert_close(stacked.embeddings[kept], together.embeddings[kept])


def test_a_cancelled_batch_ends_and_the_next_one_is_drawn(worker: Speaker, pipe: Pipeline) -> None:
    worker.say(type="cancel", batch=3, row=0)
    assert worker.draw(3, job(num_inference_steps=900))[-1].message["type"] == "done"
    frames = worker.draw(4, job())
    assert frames[-2].payload == drawn(pipe, job())[0]


def test_a_picture_over_another_is_that_of_the_pipeline_to_the_bit(worker: Speaker, pipe: Pipeline) -> None:
    start, wanted = Image.linear_gradient("L").resize((24, 16)).convert("RGB"), job(strength=0.7)
    frames = worker.draw(10, wanted, payload=start.tobytes())
    expected = pipe.draw([Settings(**wanted)], [start]).images[0].tobytes()
    assert frames[0].message["total"] == 2
    assert frames[-2].payload == expected != drawn(pipe, job())[0]


def test_words_that_were_cut_off_are_told_to_whoever_asked(worker: Speaker) -> None:
    frames = worker.draw(5, job(prompt=CAT + " left of a dogs house of cat"))
    notes = [frame.message["text"] for frame in frames if frame.message["type"] == "note"]
    assert len(notes) == 1 and notes[0].endswith("not in the picture: dogs house of cat")


def test_a_mistake_is_told_and_the_worker_goes_on(worker: Speaker) -> None:
    assert worker.draw(6, job(sampler="eular"))[-1].message["kind"] == "InputError"
    assert worker.draw(7, job(height=0))[-1].message["type"] == "failed"
    assert worker.draw(8, job())[-1].message["type"] == "done"
