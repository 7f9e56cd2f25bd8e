"""The pool, its batches, and a whole run of two steps that ends in a model which draws."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import TransformerConfig
from lineardit.config.runs import LoopConfig, SampleConfig, TransformerRun
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.errors import CheckpointError, ConfigError, OutputError
from lineardit.interop.native import describe_model, load_autoencoder
from lineardit.interop.scene_text import load_scene_text_encoder
from lineardit.pipeline import Pipeline
from lineardit.text.scene_encoder import SceneTextEncoder
from lineardit.training import generation
from lineardit.training.checkpoint import load_newest
from lineardit.training.generation import (
    NO_TOKEN,
    GenerationTask,
    PromptedTransformer,
    fill_pool,
    train_transformer,
)
from lineardit.training.loop import step_generator
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
    monkeypatch.setattr(generation, "SHARD", SHARD)
    monkeypatch.setattr(generation, "ENCODED_AT_ONCE", 5)


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
def text_encoder(tiny_model: Path) -> SceneTextEncoder:
    return load_scene_text_encoder(tiny_model)


@pytest.fixture
def pool(
    run: TransformerRun, autoencoder: Autoencoder, text_encoder: SceneTextEncoder, tmp_path: Path
) -> Iterator[dict[str, Tensor]]:
    yield fill_pool(run, tmp_path / "pool", autoencoder, text_encoder, CPU)


def task(run: TransformerRun, autoencoder: Autoencoder, pool: dict[str, Tensor]) -> GenerationTask:
    torch.manual_seed(0)
    model = PromptedTransformer(Transformer(run.model), load_scene_text_encoder(run.text_encoder))
    return GenerationTask(run, model, autoencoder, pool)


def test_the_pool_holds_the_latents_and_words_of_the_scenes(
    run: TransformerRun, autoencoder: Autoencoder, text_encoder: SceneTextEncoder, pool: dict[str, Tensor]
) -> None:
    scenes = EmojiScenes(run.scenes, run.train.seed)
    drawn = [scenes.scene(index) for index in range(2 * SHARD)]
    with torch.no_grad():
        expected = autoencoder.encode(scenes.draw(drawn))
    assert pool["latents"].dtype == torch.bfloat16 and pool["latents"].shape == (24, 4, 8, 8)
    apart = (pool["latents"].float() - expected).norm() / expected.norm()
    assert float(apart) < 0.03
    wanted = text_encoder.tokens(scenes.captions(drawn[17], 17, 3))
    found = [[piece for piece in row.tolist() if piece != NO_TOKEN] for row in pool["tokens"][17]]
    assert found == wanted
    longest = int((pool["tokens"] != NO_TOKEN).sum(-1).max())
    assert pool["tokens"].shape == (24, 3, longest)


def test_a_pool_is_drawn_once_and_reused(
    run: TransformerRun,
    autoencoder: Autoencoder,
    text_encoder: SceneTextEncoder,
    pool: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drawn_again(*_: object, **__: object) -> Tensor:
        raise AssertionError("drawn again")

    monkeypatch.setattr(EmojiScenes, "draw", drawn_again)
    again = fill_pool(run, tmp_path / "pool", autoencoder, text_encoder, CPU)
    assert all(torch.equal(pool[name], again[name]) for name in pool)
    with pytest.raises(AssertionError, match="drawn again"):
        larger = run.model_copy(update={"pool": 2 * SHARD + 1})
        fill_pool(larger, tmp_path / "pool", autoencoder, text_encoder, CPU)


@pytest.mark.parametrize("changed", ["scenes", "captions", "autoencoder", "vocabulary"])
def test_a_pool_of_other_settings_is_refused(
    run: TransformerRun,
    autoencoder: Autoencoder,
    text_encoder: SceneTextEncoder,
    pool: dict[str, Tensor],
    tmp_path: Path,
    changed: str,
) -> None:
    from lineardit.interop.native import save_autoencoder
    from lineardit.text.word_pieces import build_tokenizer

    if changed == "scenes":
        run = run.model_copy(update={"train": run.train.model_copy(update={"seed": 4})})
    elif changed == "captions":
        run = run.model_copy(update={"captions_per_scene": 2})
    elif changed == "vocabulary":
        text_encoder = SceneTextEncoder(text_encoder.config, build_tokenizer(["a dog"], 256))
    else:
        with torch.no_grad():
            next(autoencoder.parameters()).add_(1)
        other = save_autoencoder(tmp_path / "other", autoencoder)
        run = run.model_copy(update={"autoencoder": other})
    with pytest.raises(OutputError, match=rf"pool was computed from other settings \({changed}\)"):
        fill_pool(run, tmp_path / "pool", autoencoder, text_encoder, CPU)


def test_a_damaged_shard_is_named(
    run: TransformerRun,
    autoencoder: Autoencoder,
    text_encoder: SceneTextEncoder,
    pool: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    path = tmp_path / "pool" / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="shard-00001.safetensors is damaged"):
        fill_pool(run, tmp_path / "pool", autoencoder, text_encoder, CPU)


def test_each_epoch_sees_each_scene_once_in_another_order(
    run: TransformerRun, autoencoder: Autoencoder, pool: dict[str, Tensor]
) -> None:
    numbered = torch.arange(24, dtype=torch.bfloat16).view(24, 1, 1, 1).expand(24, 4, 8, 8)
    job = task(run, autoencoder, {**pool, "latents": numbered})
    epochs = [
        [
            int(number)
            for step in range(epoch * 6, epoch * 6 + 6)
            for number in job.batch(step, step_generator(3, step))[0][:, 0, 0, 0]
        ]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_dropped_prompt_is_the_empty_prompt(
    run: TransformerRun,
    autoencoder: Autoencoder,
    text_encoder: SceneTextEncoder,
    pool: dict[str, Tensor],
) -> None:
    job = task(run, autoencoder, pool)
    (empty,) = text_encoder.tokens([""])
    captions = {tuple(row.tolist()) for rows in pool["tokens"] for row in rows}
    dropped = 0
    for step in range(60):
        for row in job.batch(step, step_generator(3, step))[1].tolist():
            if tuple(row) not in captions:
                assert row == empty + [NO_TOKEN] * (len(row) - len(empty))
                dropped += 1
    assert 0.2 < dropped / 240 < 0.4


def test_padding_is_masked_and_the_loss_is_a_function_of_the_step(
    run: TransformerRun, autoencoder: Autoencoder, pool: dict[str, Tensor]
) -> None:
    job = task(run, autoencoder, pool)
    # A fresh network says nothing, whatever the prompt.
    torch.nn.init.normal_(job.model.get_parameter("transformer.to_velocity.weight"))
    first = job.losses(5)["loss"]
    torch.manual_seed(9)
    assert torch.equal(job.losses(5)["loss"], first)
    assert not torch.equal(job.losses(6)["loss"], first)
    pads = torch.full((24, 3, 5), NO_TOKEN, dtype=torch.int16)
    wider = task(run, autoencoder, {**pool, "tokens": torch.cat([pool["tokens"], pads], dim=-1)})
    wider.model.load_state_dict(job.model.state_dict())
    torch.testing.assert_close(wider.losses(5)["loss"], first)


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
        torch.testing.assert_close(value, found.tensors["ema"][f"transformer.{name}"], rtol=2**-8, atol=0)
    for name, value in pipe.text_encoder.state_dict().items():  # type: ignore[attr-defined]
        torch.testing.assert_close(value, found.tensors["ema"][f"text_encoder.{name}"], rtol=2**-8, atol=0)


def test_both_networks_are_trained_and_the_autoencoder_is_not(run: TransformerRun, tmp_path: Path) -> None:
    fast = {"ema_half_life": 0.01, "steps": 3, "learning_rate": 0.1}
    run = run.model_copy(update={"train": run.train.model_copy(update=fast)})
    pipe = Pipeline.from_pretrained(train_transformer(run, tmp_path, resume=False, device=CPU))
    before = load_scene_text_encoder(run.text_encoder).state_dict()
    after = pipe.text_encoder.state_dict()  # type: ignore[attr-defined]
    assert not torch.allclose(before["blocks.0.to_qkv.weight"], after["blocks.0.to_qkv.weight"], rtol=2**-7)
    for name, value in load_autoencoder(run.autoencoder).state_dict().items():
        torch.testing.assert_close(pipe.autoencoder.state_dict()[name], value, rtol=2**-8, atol=0)


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
