"""A model that is there goes on learning from prepared pictures, and an interruption changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lineardit.config.data import MOST_PIXELS, BucketConfig, CheckConfig
from lineardit.config.files import parse_run
from lineardit.config.finetune import FinetuneRun, FinetuneSample, FinetuneTimes
from lineardit.config.runs import LoopConfig
from lineardit.data.folder import FolderSource
from lineardit.data.prepared import PreparedData
from lineardit.data.survey import survey
from lineardit.diffusion.paths import FlowPath
from lineardit.errors import CheckpointError, ConfigError
from lineardit.interop.native import load_transformer, read_model, save_model
from lineardit.interop.text import load_text_encoder
from lineardit.pipeline import Pipeline
from lineardit.training.checkpoint import load_newest
from lineardit.training.finetune import Base, FinetuneTask, open_base, train_finetune
from lineardit.training.preparation import encode, open_ledger
from lineardit.training.runs import start
from lineardit.training.shares import Share

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(10):
        sides = [(24, 24), (16, 32), (32, 16)][number % 3]
        levels = np.random.default_rng(number).integers(0, 256, (*sides, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.png")
        (folder / f"{number}.json").write_text(
            '{"captions": ["a cat", "two dogs by a house"], "weights": [1, 3]}'
        )
    found = survey(FolderSource(folder), BucketConfig(sizes=(24,), step=8), CheckConfig())
    out = folder / "prepared"
    encode(found, open_ledger(out, {}), tiny_model, max_pixels=MOST_PIXELS)
    return out


@pytest.fixture
def run(tiny_model: Path, data: Path) -> FinetuneRun:
    return FinetuneRun(
        base=str(tiny_model),
        data=data,
        prompt_dropout=0.3,
        sample=FinetuneSample(prompts=("a dog",), seeds=(0, 1), num_inference_steps=2),
        train=LoopConfig(steps=3, batch_size=4, seed=3, dtype="fp32", warmup_steps=0, checkpoint_every=2),
    )


@pytest.fixture
def base(run: FinetuneRun) -> Base:
    return open_base(run, CPU)


def task(run: FinetuneRun, base: Base) -> FinetuneTask:
    return FinetuneTask(run, base.transformer, base, PreparedData(run.data))


def test_a_batch_pairs_latents_of_one_bucket_with_one_of_their_captions_or_none(
    run: FinetuneRun, base: Base, tiny_model: Path
) -> None:
    job = task(run, base)
    data, encoder = job.data, load_text_encoder(tiny_model)
    texts = ["", "a cat", "two dogs by a house"]
    known = [encoder.encode([text]).embeddings[0] for text in texts]
    counts = dict.fromkeys(texts, 0)
    for step in range(60):
        batch, chosen = job.batch(step, Share()), job.batches.batch(step)
        assert batch.bucket == chosen.bucket
        assert torch.equal(batch.latents, torch.stack([data.latents(i).float() for i in chosen.samples]))
        for row, there in zip(batch.text, batch.mask, strict=True):
            near = [len(k) == int(there.sum()) and (row[there] - k).norm() < 0.02 * k.norm() for k in known]
            assert sum(near) == 1
            counts[texts[near.index(True)]] += 1
    total = sum(counts.values())
    assert abs(counts[""] / total - 0.3) < 0.08
    assert abs(counts["a cat"] / (total - counts[""]) - 0.25) < 0.08


def test_shares_of_a_step_together_are_the_step(run: FinetuneRun, base: Base) -> None:
    job = task(run, base)
    for step in (0, 5):
        whole = float(job.losses(step)["loss"].detach())
        parts = [job.losses_of_share(step, Share(index, 2))["loss"] for index in range(2)]
        assert float(sum(parts).detach()) / 2 == pytest.approx(whole, rel=1e-5)
        rows = [job.batch(step, Share(index, 4)).noise for index in range(4)]
        assert torch.equal(torch.cat(rows), job.batch(step, Share()).noise)


def test_the_loss_is_that_of_flow_matching(run: FinetuneRun, base: Base) -> None:
    job = task(run, base)
    batch = job.batch(7, Share())
    path = FlowPath()
    with torch.no_grad():
        noisy = path.add_noise(batch.latents, batch.noise, batch.times)
        predicted = base.transformer(noisy, batch.times, batch.text, batch.mask)
        expected = (predicted - (batch.noise - batch.latents)).square().mean()
    assert float(job.losses(7)["loss"].detach()) == pytest.approx(float(expected), rel=1e-5)


def test_the_shift_is_the_model_s_own_or_the_recipe_s_and_follows_the_size(
    run: FinetuneRun, base: Base
) -> None:
    base.place.sampling["shift"] = 3.0  # type: ignore[index]
    assert {each.shift for each in task(run, base)._objectives} == {3.0}
    times = FinetuneTimes(shift=2.0, shift_tokens=9)
    job = task(run.model_copy(update={"times": times}), base)
    shifts = dict(zip(job.data.buckets, (each.shift for each in job._objectives), strict=True))
    assert shifts[(24, 24)] == 2.0 and shifts[(16, 32)] == pytest.approx(2 * (8 / 9) ** 0.5)


def test_a_run_ends_in_a_model_that_draws(run: FinetuneRun, tmp_path: Path) -> None:
    place = start(run, tmp_path / "run", resume=False, device="cpu")
    pipe = Pipeline.from_pretrained(place)
    (image,) = pipe("a dog", height=16, width=32, num_inference_steps=2).images
    assert image.size == (32, 16) and pipe.sampling.size == 24 and pipe.sampling.guidance_scale == 3.0
    before, after = load_transformer(Path(str(run.base))).state_dict(), load_transformer(place).state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in ("to_velocity.weight", "offset"))
    kept = [read_model(each).components["autoencoder"].tensors for each in (Path(str(run.base)), place)]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    about = read_model(place).about
    assert about["steps_trained"] == 3 and about["pictures"] == 10 and about["recipe"]["method"] == "full"
    assert (tmp_path / "run" / "samples" / "step-00000003.png").is_file()


def test_an_interrupted_run_goes_on_bit_for_bit(run: FinetuneRun, tmp_path: Path) -> None:
    def weights(folder: Path) -> dict[str, Tensor]:
        found = load_newest(folder)
        assert found is not None and found.step == 3
        assert found.state["position"]["step"] == 3
        return {f"{stem}.{name}": each for stem, of in found.tensors.items() for name, each in of.items()}

    # A rate that does not depend on the number of steps: the short run stands for an interrupted one.
    whole_run = run.model_copy(update={"train": run.train.model_copy(update={"decay": "constant"})})
    short = run.model_copy(update={"train": whole_run.train.model_copy(update={"steps": 2})})
    train_finetune(short, tmp_path / "parts", resume=False, device=CPU)
    train_finetune(whole_run, tmp_path / "parts", resume=True, device=CPU)
    train_finetune(whole_run, tmp_path / "whole", resume=False, device=CPU)
    parts, whole = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_run_is_not_resumed_with_other_data(run: FinetuneRun, tmp_path: Path) -> None:
    train_finetune(run, tmp_path / "run", resume=False, device=CPU)
    other = run.model_copy(update={"train": run.train.model_copy(update={"batch_size": 2, "steps": 5})})
    with pytest.raises(CheckpointError, match="made with other data: batch_size was 4 and is 2"):
        train_finetune(other, tmp_path / "run", resume=True, device=CPU)


def test_without_prompts_the_first_captions_are_drawn(run: FinetuneRun, base: Base) -> None:
    sample = run.sample.model_copy(update={"prompts": (), "seeds": (5,)})
    job = task(run.model_copy(update={"sample": sample}), base)
    images = job.sample(base.transformer, 0)
    assert images.shape == (1, 3, 24, 24), "all pictures have the same first caption"
    assert torch.equal(images, job.sample(base.transformer, 9))


def test_data_of_another_model_is_refused(run: FinetuneRun, tiny_model: Path, tmp_path: Path) -> None:
    model = read_model(tiny_model)
    with torch.no_grad():
        for tensor in model.components["text_encoder"].tensors.values():
            tensor.mul_(1.3)
    tokenizer = (tiny_model / "tokenizer.json").read_bytes()
    save_model(
        tmp_path / "other", model.components, about=model.about, extra_files={"tokenizer.json": tokenizer}
    )
    other = run.model_copy(update={"base": str(tmp_path / "other")})
    with pytest.raises(ConfigError, match="prepared with another text encoder than that of .*other"):
        train_finetune(other, tmp_path / "run", resume=False, device=CPU)
    with pytest.raises(
        ConfigError, match="was prepared for another model than the bundled model: it has 4 lat"
    ):
        train_finetune(run.model_copy(update={"base": None}), tmp_path / "run", resume=False, device=CPU)
    assert not (tmp_path / "run").exists()


def test_a_recipe_names_its_base_and_its_data() -> None:
    text = 'kind = "finetune"\ndata = "photos"\n[train]\nsteps = 5\nbatch_size = 2\n[times]\nmean = 0.5\n'
    run = parse_run(text)
    assert isinstance(run, FinetuneRun)
    assert run.base is None and run.times.shift is None and run.times.resolved(3.0).shift == 3.0
    with pytest.raises(ConfigError, match="unknown key dat; did you mean data"):
        parse_run(text.replace("data", "dat"))
