"""Recipes: what is read, what overrides change, and how mistakes are answered."""

from itertools import pairwise
from pathlib import Path

import pytest

from lineardit.config.files import KINDS, explain, parse_run, read_run
from lineardit.config.runs import AutoencoderRun, TextRun, TransformerRun
from lineardit.errors import ConfigError

AUTOENCODER = """
kind = "autoencoder"
[model]
latent_channels = 8
encoder = [{ width = 32, depth = 1 }, { width = 64, depth = 2 }]
decoder = [{ width = 32, depth = 1 }, { width = 64, depth = 2, norm = "batch" }]
[train]
steps = 1000
batch_size = 4
"""

TRANSFORMER = """
kind = "transformer"
autoencoder = "runs/autoencoder"
text_encoder = "runs/text"
model = { preset = "sana-1.6b", depth = 2 }
sample.prompts = ["a \\"quoted\\" ☂ umbrella", 'a \\ backslash']
[train]
steps = 1000
batch_size = 4
betas = [0.9, 0.95]
"""

TEXT = """
kind = "text"
model = { vocabulary = 1000, width = 128, depth = 2 }
train = { steps = 10, batch_size = 2 }
"""


@pytest.mark.parametrize(
    ("text", "kind"), [(AUTOENCODER, AutoencoderRun), (TRANSFORMER, TransformerRun), (TEXT, TextRun)]
)
def test_the_kind_decides_the_class(tmp_path: Path, text: str, kind: type) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")
    assert type(read_run(path)) is kind


@pytest.mark.parametrize("text", [AUTOENCODER, TRANSFORMER, TEXT])
def test_an_explained_recipe_reads_back_to_the_same_run(text: str) -> None:
    run = parse_run(text, ["train.seed=7", "train.learning_rate=1e-4"])
    assert parse_run(explain(run)) == run


def test_explaining_shows_the_value_and_what_the_field_means() -> None:
    text = explain(parse_run(AUTOENCODER))
    assert "# Samples per step, of all processes together.\ntrain.batch_size = 4\n" in text
    assert "# Rate after the warm-up, before the decay.\ntrain.learning_rate = 0.0003\n" in text


@pytest.mark.parametrize("text", [AUTOENCODER, TRANSFORMER, TEXT])
def test_every_field_of_a_run_is_explained(text: str) -> None:
    lines = explain(parse_run(text)).splitlines()
    bare = [line for before, line in pairwise(["", *lines]) if line[0] != "#" and before[:1] != "#"]
    assert not [line for line in bare if not line.startswith(("model.", "scenes."))]


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.steps=7", lambda run: run.train.steps, 7),
        ("train.steps = 2_000", lambda run: run.train.steps, 2000),
        ("train.learning_rate=1e-4", lambda run: run.train.learning_rate, 1e-4),
        ("train.learning_rate=.5", lambda run: run.train.learning_rate, 0.5),
        ("train.dtype=fp32", lambda run: run.train.dtype, "fp32"),
        ('train.dtype="fp32"', lambda run: run.train.dtype, "fp32"),
        ("train.betas=[0.8, 0.9]", lambda run: run.train.betas, (0.8, 0.9)),
        ("scenes.size=256", lambda run: run.scenes.size, 256),
        ("model.encoder.1.width=96", lambda run: run.model.encoder[1].width, 96),
        ("loss.mse=2", lambda run: run.loss.mse, 2.0),
    ],
)
def test_an_override_changes_one_field(override: str, read: object, value: object) -> None:
    assert callable(read)
    plain, changed = parse_run(AUTOENCODER), parse_run(AUTOENCODER, [override])
    assert read(changed) == value
    before, after = explain(plain).splitlines(), explain(changed).splitlines()
    assert sum(line != other for line, other in zip(before, after, strict=True)) == 1


def test_the_last_of_two_overrides_wins() -> None:
    run = parse_run(AUTOENCODER, ["train.steps=5", "train.steps=7"])
    assert run.train.steps == 7


def test_a_model_section_states_its_differences_from_a_preset() -> None:
    run = parse_run(TRANSFORMER, ["model.head_dim=64"])
    assert isinstance(run, TransformerRun)
    assert (run.model.depth, run.model.width, run.model.head_dim, run.model.cross_head_dim) == (
        2,
        2240,
        64,
        112,
    )
    smaller = parse_run(TRANSFORMER, ["model.head_dim=64", "model.preset=sana-0.6b"])
    assert isinstance(smaller, TransformerRun)
    assert (smaller.model.depth, smaller.model.width, smaller.model.head_dim) == (2, 1152, 64)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.learning_rat=1", "unknown key train.learning_rat; did you mean train.learning_rate?"),
        ("learning_rate=1", "unknown key learning_rate; did you mean train.learning_rate?"),
        ("learning_rat=1", "unknown key learning_rat; did you mean train.learning_rate?"),
        ("tran.steps=1", "unknown key tran; did you mean train?"),
        (
            "model.encoder.1.widht=3",
            "unknown key model.encoder.1.widht; did you mean model.encoder.1.width?",
        ),
        (
            "model.encoder.2.width=3",
            "unknown key model.encoder.2: model.encoder is a list. Use a number from 0 to 1.",
        ),
        (
            "loss.qqqq=1",
            "unknown key loss.qqqq. Known there: l1, mse, perceptual, lpips, adversarial, latent.",
        ),
        ("train.steps.more=1", "unknown key train.steps.more: train.steps is a single value, 1000."),
        ("train.steps", "'train.steps' is no override. Write key=value, as in train.steps=100."),
        ("=3", "'=3' is no override. Write key=value, as in train.steps=100."),
        ("train.dtype=fp8", "train.dtype='fp8': Input should be 'auto', 'bf16', 'fp16' or 'fp32'"),
        ("train.steps=0", "train.steps=0: Input should be greater than 0"),
        ("train.betas=[0.9, 1.0]", "train.betas=(0.9, 1.0): each is at least 0 and below 1."),
        ("loss.l1=0", "loss.l1, mse and perceptual are all 0: nothing would be learned. Use l1=1.0."),
        (
            "kind=image",
            f"the recipe has kind='image'. Use one of {', '.join(KINDS)}.",
        ),
    ],
)
def test_a_mistake_is_answered_with_the_whole_dotted_key(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run(AUTOENCODER, [override])
    assert str(caught.value) == complaint


def test_a_missing_section_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^train: Field required$"):
        parse_run(AUTOENCODER.partition("[train]")[0])


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"model.preset: unknown transformer preset sana-1.6; did you mean sana-1.6b"
    ):
        parse_run(TRANSFORMER, ["model.preset=sana-1.6"])


def test_a_missing_recipe_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "emoji.toml").write_text(AUTOENCODER)
    with pytest.raises(ConfigError, match=r"emojy.toml cannot be read .* Recipes there: .*emoji.toml"):
        read_run(tmp_path / "emojy.toml")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"kind = ", "no valid TOML"), (b"\xff\xfe", "not a UTF-8 text"), (b"steps = 3", "has no key kind")],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_run(path)
    assert str(path) in str(caught.value)


def test_a_run_cannot_be_changed_afterwards() -> None:
    run = parse_run(AUTOENCODER)
    with pytest.raises(ValueError, match="frozen"):
        run.train.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).parents[2] / "recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_recipe_reads_and_its_explanation_reads_back(recipe: Path) -> None:
    run = read_run(recipe)
    assert parse_run(explain(run)) == run
