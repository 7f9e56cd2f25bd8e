"""The pool, its batches, and a whole run of two steps that ends in a model which draws."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import TransformerConfig
from lineardit.config.runs import LoopConfig, SampleConfig, TimeConfig, TransformerRun
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.errors import CheckpointError, ConfigError, OutputError
from lineardit.interop.native import (
    describe_model,
    load_autoencoder,
    load_transformer,
    save_autoencoder,
)
from lineardit.interop.text import load_text_encoder, save_text_encoder
from lineardit.pipeline import Pipeline
from lineardit.text.embedding import TextEmbedding
from lineardit.text.offline import OfflineEncoder
from lineardit.training import pool as pools
from lineardit.training.checkpoint import load_newest
from lineardit.training.generation import GenerationTask, train_transformer
from lineardit.training.loop import step_generator
from lineardit.training.pool import CaptionPool, pool_captions, pool_latents
from lineardit.training.shares import Share
from lineardit.transformer.model import Transformer

CPU = torch.device("cpu")
SHARD = 12


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few scenes per shard, in glyphs that need no font."""

    def from_font(names: tuple[str, ...], path: Path | None = None) -> Atlas:
        glyphs = torch.randint(0, 256, (len(names), 4, 8, 8), generator=torch.Generator().manual_seed(0))
        glyphs[:, 3] = 255
        return Atlas(names, glyphs.to(torch.uint8))

    monkeypatch.setattr(Atlas, "from_font", from_font)
    monkeypatch.setattr(pools, "SHARD", SHARD)
    monkeypatch.setattr(pools, "ENCODED_AT_ONCE", 5)


@pytest.fixture
def run(tiny_model: Path) -> TransformerRun:
    return TransformerRun(
        model=TransformerConfig(
            latent_channels=4, depth=1, width=16, head_dim=8, cross_head_dim=8, text_width=12
        ),
        scenes=SceneConfig(size=32, objects=12, placement_step=4),
        autoencoder=tiny_model,
        text_encoder=tiny_model,
        pool=2 * SHARD,
        captions_per_scene=3,
        prompt_dropout=0.3,
        sample=SampleConfig(prompts=("a dog", "two cats"), num_inference_steps=2, guidance_scale=2.0),
        train=LoopConfig(steps=2, batch_size=4, seed=3, dtype="fp32", warmup_steps=0, optimizer="muon"),
    )


@pytest.fixture
def autoencoder(tiny_model: Path) -> Autoencoder:
    return load_autoencoder(tiny_model)


@pytest.fixture
def text_encoder(tiny_model: Path) -> OfflineEncoder:
    return load_text_encoder(tiny_model)


class Pool(NamedTuple):
    latents: Tensor
    captions: CaptionPool


Fill = Callable[[TransformerRun], Pool]


@pytest.fixture
def fill(autoencoder: Autoencoder, text_encoder: OfflineEncoder, tmp_path: Path) -> Fill:
    def filled(run: TransformerRun) -> Pool:
        return Pool(
            pool_latents(run, tmp_path / "latents", autoencoder),
            pool_captions(run, tmp_path / "captions", text_encoder),
        )

    return filled


@pytest.fixture
def pool(run: TransformerRun, fill: Fill) -> Pool:
    return fill(run)


def task(run: TransformerRun, pool: Pool) -> GenerationTask:
    torch.manual_seed(0)
    return GenerationTask(
        run,
        Transformer(run.model),
        load_autoencoder(run.autoencoder),
        load_text_encoder(run.text_encoder),
        pool.latents,
        pool.captions,
    )


def test_the_pool_holds_the_latents_and_captions_of_the_scenes(
    run: TransformerRun, autoencoder: Autoencoder, text_encoder: OfflineEncoder, pool: Pool
) -> None:
    scenes = EmojiScenes(run.scenes, run.train.seed)
    drawn = [scenes.scene(index) for index in range(2 * SHARD)]
    with torch.no_grad():
        expected = autoencoder.encode(scenes.draw(drawn))
    assert pool.latents.dtype == torch.bfloat16 and pool.latents.shape == (24, 4, 8, 8)
    apart = (pool.latents.float() - expected).norm() / expected.norm()
    assert float(apart) < 0.03
    assert pool.captions.lengths.shape == (24, 3)
    for number in (0, 11, 17):
        embeddings, mask = text_encoder.encode(scenes.captions(drawn[number], number, 3))
        for phrasing in range(3):
            want = embeddings[phrasing][mask[phrasing]]
            got = pool.captions.row(number, phrasing)
            torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)


def test_a_pool_is_computed_once_and_reused(
    run: TransformerRun, fill: Fill, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*_: object, **__: object) -> Tensor:
        raise AssertionError("computed again")

    monkeypatch.setattr(EmojiScenes, "draw", again)
    monkeypatch.setattr(pools, "_embedded", again)
    reused = fill(run)
    assert torch.equal(pool.latents, reused.latents)
    assert torch.equal(pool.captions.vectors, reused.captions.vectors)
    with pytest.raises(AssertionError, match="computed again"):
        fill(run.model_copy(update={"pool": 2 * SHARD + 1}))


@pytest.mark.parametrize(
    ("changed", "folder"),
    [
        ("scenes", "latents"),
        ("captions", "captions"),
        ("autoencoder", "latents"),
        ("text_encoder", "captions"),
    ],
)
def test_a_pool_of_other_settings_is_refused(
    run: TransformerRun,
    autoencoder: Autoencoder,
    text_encoder: OfflineEncoder,
    fill: Fill,
    pool: Pool,
    tmp_path: Path,
    changed: str,
    folder: str,
) -> None:
    if changed == "scenes":
        run = run.model_copy(update={"train": run.train.model_copy(update={"seed": 4})})
    elif changed == "captions":
        run = run.model_copy(update={"captions_per_scene": 2})
    else:
        network: Autoencoder | OfflineEncoder = autoencoder if changed == "autoencoder" else text_encoder
        with torch.no_grad():
            next(network.parameters()).add_(1)
        other = tmp_path / "other"
        if isinstance(network, Autoencoder):
            save_autoencoder(other, network)
        else:
            save_text_encoder(other, network)
        run = run.model_copy(update={changed: other})
    with pytest.raises(OutputError, match=rf"{folder} was computed from other settings \({changed}\)"):
        fill(run)


def test_a_damaged_shard_is_named(run: TransformerRun, fill: Fill, pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "captions" / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="shard-00001.safetensors is damaged"):
        fill(run)


def test_each_epoch_sees_each_scene_once_in_another_order(run: TransformerRun, pool: Pool) -> None:
    job = task(run, pool)
    epochs = [
        [
            int(number)
            for step in range(epoch * 6, epoch * 6 + 6)
            for number in job.batch(step, step_generator(3, step))[0]
        ]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_scenes_of_two_objects_can_be_shown_more_often(run: TransformerRun, pool: Pool) -> None:
    scenes = EmojiScenes(run.scenes, run.train.seed)
    pairs = {number for number in range(24) if scenes.scene(number).kind == "pair"}
    assert 0 < len(pairs) < 12
    job = task(run.model_copy(update={"pair_repeats": 3}), pool)
    steps = (24 + 2 * len(pairs)) // 4
    shown = Counter(
        number for step in range(steps) for number in job.batch(step, step_generator(3, step))[0].tolist()
    )
    left_over = (24 + 2 * len(pairs)) % 4
    expected = Counter(dict.fromkeys(range(24), 1)) + Counter(dict.fromkeys(pairs, 2))
    assert not shown - expected and (expected - shown).total() == left_over


def test_a_batch_pairs_each_scene_with_one_of_its_captions(
    run: TransformerRun, text_encoder: OfflineEncoder, pool: Pool
) -> None:
    job = task(run, pool)
    (empty,) = text_encoder.encode([""]).embeddings
    dropped, phrasings = 0, set()
    for step in range(60):
        chosen, text = job.batch(step, step_generator(3, step))
        for number, row, there in zip(chosen.tolist(), *text, strict=True):
            assert not row[~there].any()
            own = [pool.captions.row(number, phrasing).float() for phrasing in range(3)]
            same = [phrasing for phrasing in range(3) if torch.equal(own[phrasing], row[there])]
            if same:
                phrasings.add(same[0])
            else:
                assert torch.equal(row[there], empty)
                dropped += 1
    assert 0.2 < dropped / 240 < 0.4 and phrasings == {0, 1, 2}


def test_no_prompt_is_what_the_pipeline_guides_away_from(
    run: TransformerRun, text_encoder: OfflineEncoder, pool: Pool
) -> None:
    class Instructed:
        """As Gemma: an instruction comes before what is to be seen, and before nothing else."""

        width = text_encoder.width

        def encode(self, prompts: Sequence[str]) -> TextEmbedding:
            return text_encoder.encode([f"a red apple {prompt}" for prompt in prompts])

        def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
            return text_encoder.encode(prompts)

    model, encoder = Transformer(run.model), Instructed()
    always = run.model_copy(update={"prompt_dropout": 1.0})
    autoencoder = load_autoencoder(run.autoencoder)
    job = GenerationTask(always, model, autoencoder, encoder, pool.latents, pool.captions)
    (empty,) = text_encoder.encode([""]).embeddings
    _, text = job.batch(0, step_generator(3, 0))
    assert all(torch.equal(row, empty) for row in text.embeddings)
    shown: list[tuple[Tensor, Tensor]] = []
    model.register_forward_pre_hook(lambda _, given: shown.append(given[2:4]))
    job.sample(model, 0)
    text, mask = shown[0]
    assert all(torch.equal(row[there], empty) for row, there in zip(text[:2], mask[:2], strict=True))
    said = encoder.encode(run.sample.prompts)
    for row, there, wanted, own in zip(text[2:], mask[2:], *said, strict=True):
        torch.testing.assert_close(row[there], wanted[own])


def test_padding_is_masked_and_the_loss_is_a_function_of_the_step(run: TransformerRun, pool: Pool) -> None:
    job = task(run, pool)
    # A fresh network says nothing, whatever the prompt.
    torch.nn.init.normal_(job.model.get_parameter("to_velocity.weight"))
    first = job.losses(5)["loss"]
    torch.manual_seed(9)
    assert torch.equal(job.losses(5)["loss"], first)
    assert not torch.equal(job.losses(6)["loss"], first)
    batch = job.batch

    def with_rubbish(step: int, generator: torch.Generator) -> tuple[Tensor, TextEmbedding]:
        chosen, text = batch(step, generator)
        more = torch.full_like(text.embeddings[:, :3], 7.0)
        embeddings = torch.cat([text.embeddings, more], dim=1)
        return chosen, TextEmbedding(embeddings, functional.pad(text.mask, (0, 3)))

    job.batch = with_rubbish  # type: ignore[method-assign]
    torch.testing.assert_close(job.losses(5)["loss"], first)


def test_the_prompt_reaches_the_loss(run: TransformerRun, pool: Pool) -> None:
    job = task(run, pool)
    torch.nn.init.normal_(job.model.get_parameter("to_velocity.weight"))
    others = CaptionPool(pool.captions.vectors.flip(0), pool.captions.lengths)
    assert not torch.equal(job.losses(5)["loss"], task_like(job, others).losses(5)["loss"])


def test_naming_objects_adds_to_the_loss_and_leaves_no_trace_in_what_is_written(
    run: TransformerRun, pool: Pool, tmp_path: Path
) -> None:
    plain = task(run, pool).losses(5)
    named = task(run.model_copy(update={"layout_weight": 0.5}), pool).losses(5)
    assert torch.equal(named["velocity"], plain["loss"])
    torch.testing.assert_close(named["loss"], named["velocity"] + 0.5 * named["layout"])
    assert 0.5 * math.log(13) < float(named["layout"].detach()) < 2 * math.log(13)
    named["loss"].backward()
    folder = train_transformer(
        run.model_copy(update={"layout_weight": 0.5}), tmp_path / "run", resume=False, device=CPU
    )
    assert load_transformer(folder).state_dict().keys() == Transformer(run.model).state_dict().keys()
    found = load_newest(tmp_path / "run")
    assert found is not None and "head.weight" in found.tensors["model"]


@pytest.mark.parametrize("layout_weight", [0.0, 0.5])
def test_the_shares_of_a_batch_have_its_loss_as_their_mean(
    run: TransformerRun, pool: Pool, layout_weight: float
) -> None:
    job = task(run.model_copy(update={"layout_weight": layout_weight}), pool)
    whole = job.losses(5)
    shares = [job.losses_of_share(5, Share(index, 2)) for index in range(2)]
    for name, value in whole.items():
        torch.testing.assert_close((shares[0][name] + shares[1][name]) / 2, value)


def test_the_times_are_those_of_the_recipe(run: TransformerRun, pool: Pool) -> None:
    late = run.model_copy(update={"times": TimeConfig(mean=20.0)})
    job = task(late, pool)
    seen: list[Tensor] = []

    def network(x: Tensor, times: Tensor, *_: Tensor) -> Tensor:
        seen.append(times)
        return torch.zeros_like(x)

    job._network = network  # type: ignore[assignment]
    job.losses(5)
    assert seen[0].min() > 0.999


def task_like(job: GenerationTask, captions: CaptionPool) -> GenerationTask:
    assert isinstance(job.model, Transformer)
    return GenerationTask(job.run, job.model, job.autoencoder, job.text_encoder, job.latents, captions)


def test_two_steps_give_a_folder_that_draws(run: TransformerRun, tmp_path: Path) -> None:
    folder = train_transformer(run, tmp_path / "run", resume=False, device=CPU)
    assert folder == tmp_path / "run" / "model"
    assert (tmp_path / "run" / "samples" / "step-00000002.png").is_file()
    about = describe_model(folder)[1]
    assert about["steps_trained"] == 2
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    assert (pipe.sampling.size, pipe.sampling.num_inference_steps) == (32, 2)
    assert (pipe.sampling.guidance_scale, pipe.sampling.shift) == (2.0, 1.0)
    (picture,) = pipe("a dog").images
    assert picture.size == (32, 32)
    found = load_newest(tmp_path / "run")
    assert found is not None
    for name, value in pipe.transformer.state_dict().items():
        torch.testing.assert_close(value, found.tensors["ema"][name], rtol=2**-10, atol=1e-7)


def test_a_run_starts_from_the_transformer_of_a_folder(run: TransformerRun, tmp_path: Path) -> None:
    still = {"steps": 1, "learning_rate": 1e-9, "ema_half_life": 0.01}
    first = train_transformer(run, tmp_path / "first", resume=False, device=CPU)
    further = run.model_copy(update={"start": first, "train": run.train.model_copy(update=still)})
    second = train_transformer(further, tmp_path / "second", resume=False, device=CPU)
    ours, theirs = (load_transformer(folder).state_dict() for folder in (first, second))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=2**-9, atol=1e-6)
    wider = further.model_copy(update={"model": run.model.model_copy(update={"depth": 2})})
    with pytest.raises(CheckpointError, match="does not fit Transformer"):
        train_transformer(wider, tmp_path / "third", resume=False, device=CPU)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": {"batch_size": 6}}, "batch_size was 4 and is 6"),
        ({"pool": 3 * SHARD}, r"counts was \[24\] and is \[36\]"),
        ({"pair_repeats": 3}, "pair_repeats was 1 and is 3"),
    ],
)
def test_a_run_whose_batches_would_be_others_is_not_resumed(
    run: TransformerRun, tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    train_transformer(run, tmp_path, resume=False, device=CPU)
    if "train" in changes:
        changes = {"train": run.train.model_copy(update=changes["train"])}  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match=f"was made with other data: {told}"):
        train_transformer(run.model_copy(update=changes), tmp_path, resume=True, device=CPU)


def test_only_the_transformer_is_trained(run: TransformerRun, tmp_path: Path) -> None:
    fast = {"ema_half_life": 0.01, "steps": 3, "learning_rate": 0.1}
    run = run.model_copy(update={"train": run.train.model_copy(update=fast)})
    pipe = Pipeline.from_pretrained(train_transformer(run, tmp_path, resume=False, device=CPU))
    assert pipe.transformer.blocks[0].get_parameter("offset").abs().max() > 0.1
    text = load_text_encoder(run.text_encoder).state_dict()
    for name, value in pipe.text_encoder.state_dict().items():  # type: ignore[attr-defined]
        torch.testing.assert_close(text[name], value, rtol=2**-10, atol=1e-7)
    for name, value in load_autoencoder(run.autoencoder).state_dict().items():
        torch.testing.assert_close(pipe.autoencoder.state_dict()[name], value, rtol=2**-10, atol=1e-7)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        (
            "model",
            "latent_channels",
            5,
            "model.latent_channels=5, but .* makes 4. Use model.latent_channels=4",
        ),
        ("model", "text_width", 13, "model.text_width=13, but .* gives 12. Use model.text_width=12"),
        ("train", "batch_size", 25, "train.batch_size=25 is more than the 24 scenes of the pool"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_drawn(
    run: TransformerRun, tmp_path: Path, section: str, field: str, value: int, message: str
) -> None:
    changed = getattr(run, section).model_copy(update={field: value})
    with pytest.raises(ConfigError, match=message):
        train_transformer(run.model_copy(update={section: changed}), tmp_path, resume=False, device=CPU)
    assert not list(tmp_path.iterdir())
