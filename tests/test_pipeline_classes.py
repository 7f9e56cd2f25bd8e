"""Drawing classes: names and numbers, the null class, and the same pictures as DDIM written out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lineardit.cli.app import main
from lineardit.config.dit import LinearDiTConfig
from lineardit.diffusion.randomness import seeded_noise
from lineardit.errors import CheckpointError, InputError, PromptError
from lineardit.interop.export import export
from lineardit.interop.native import Component, autoencoder_component, load_autoencoder, save_model
from lineardit.interop.places import open_place
from lineardit.pipeline import Pipeline
from lineardit.transformer.dit import LinearDiT, SoftmaxDiT

CLASSES = ["cat", "dog", "7"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A class-conditional model with random weights: 8 pixels per token, 24 per side."""
    config = LinearDiTConfig(input_dim=16, hidden_size=16, num_layers=1, num_heads=2, num_classes=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LinearDiT(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    place = tmp_path_factory.mktemp("models") / "classes"
    components = {
        "transformer": Component("LinearDiT", config, model.state_dict()),
        "autoencoder": autoencoder_component(load_autoencoder(tiny_model)),
    }
    sampling = {"sampler": "ddim", "guidance_scale": 3.0, "num_inference_steps": 4, "size": 24}
    save_model(place, components, about={"classes": CLASSES, "sampling": sampling})
    return place


@pytest.fixture
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


@torch.no_grad()
def test_a_class_is_drawn_by_ddim_away_from_the_null_class(pipe: Pipeline) -> None:
    """DDIM (arXiv:2010.02502) at every 250th time of DDPM's path, with guidance, written out."""
    found = pipe(["dog"], seed=5, output_type="latent").images
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    x = seeded_noise((4, 6, 6), [5])
    model = pipe.transformer
    assert isinstance(model, LinearDiT)
    for time, after in ((750, 500), (500, 250), (250, 0), (0, -1)):
        at = torch.tensor([time])
        null, dog = (model(x, at, torch.tensor([label])) for label in (3, 1))
        noise = null + 3.0 * (dog - null)
        now, then = kept[time].float(), kept[after].float() if after >= 0 else torch.tensor(1.0)
        x0 = (x - (1 - now).sqrt() * noise) / now.sqrt()
        x = then.sqrt() * x0 + (1 - then).sqrt() * noise
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_names_come_before_numbers_and_batches_change_nothing(pipe: Pipeline) -> None:
    by_name = pipe(["dog", "7", "cat"], seed=[1, 2, 3], output_type="pt").images
    by_number = pipe(["1", " 2 ", "0"], seed=[1, 2, 3], output_type="pt", batch_size=3).images
    torch.testing.assert_close(by_name, by_number, rtol=1e-4, atol=1e-4)
    away = pipe("dog", "cat", seed=1, output_type="pt").images
    assert not torch.allclose(away, by_name[:1], atol=1e-3)


def test_what_is_no_class_is_refused_with_those_there_are(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match=r"'do' is none of the 3 classes.* Did you mean dog\? .*cat, dog, 7"):
        pipe("do")
    with pytest.raises(InputError, match="'3' is none of the 3 classes .* a number from 0 to 2"):
        pipe(["cat", "3"])
    with pytest.raises(InputError, match="'owl' is none of the 3 classes"):
        pipe("cat", "owl")
    with pytest.raises(PromptError, match="is empty"):
        pipe("")
    with pytest.raises(InputError, match="class-conditional model runs every block"):
        pipe("cat", step_cache=0.1)
    with pytest.raises(InputError, match="unknown sampler 'euler'. Use one of ddim, ddpm, dpm"):
        pipe("cat", sampler="euler")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative_prompt": "owl"}, "'owl' is none of the 3 classes"),
        ({"num_inference_steps": 1001}, "steps=1001 exceed the 1000 times of the path"),
        ({"step_cache": 0.1}, "class-conditional model runs every block"),
    ],
)
def test_a_plan_says_what_drawing_would_refuse(pipe: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.plan("cat", **options)
    pipe.plan("cat", negative_prompt=" dog ", num_inference_steps=1000)
    pipe.plan("cat", negative_prompt="owl", guidance_scale=1.0)  # which never reads it
    assert torch.equal(pipe("cat", "  ", output_type="pt").images, pipe("cat", output_type="pt").images)


def test_a_saved_class_model_draws_the_same(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "copy")
    again = Pipeline.from_pretrained(tmp_path / "copy", device="cpu")
    assert again.classes == tuple(CLASSES) and again.sampling == pipe.sampling
    one, two = (each("cat", output_type="pt").images for each in (pipe, again))
    assert torch.equal(one, two)


def folder_with(place: Path, autoencoder: Component, transformer: Component) -> Path:
    """A model of three classes that names one."""
    components = {"transformer": transformer, "autoencoder": autoencoder}
    save_model(place, components, about={"classes": ["cat"]})
    return place


def test_parts_and_names_that_do_not_fit_are_found(folder: Path, tmp_path: Path, tiny_model: Path) -> None:
    autoencoder = autoencoder_component(load_autoencoder(tiny_model))
    config = LinearDiTConfig(input_dim=12, hidden_size=16, num_layers=1, num_heads=2, num_classes=3)
    broken = Component("LinearDiT", config, LinearDiT(config).state_dict())
    save_model(tmp_path / "mixed", {"transformer": broken, "autoencoder": autoencoder})
    with pytest.raises(CheckpointError, match="latent channels have 16 numbers, the transformer takes 12"):
        open_place(tmp_path / "mixed")
    good = open_place(folder).networks["transformer"].component()
    with pytest.raises(CheckpointError, match="about.classes does not name 3 classes"):
        Pipeline.from_pretrained(folder_with(tmp_path / "names", autoencoder, good), device="cpu")
    save_model(tmp_path / "numbers", {"transformer": good})
    assert open_place(tmp_path / "numbers").classes == ("0", "1", "2")
    assert open_place(tmp_path / "numbers").missing == ["autoencoder"]


@pytest.mark.parametrize("format", ["diffusers", "official"])
def test_there_is_no_such_model_in_other_formats(folder: Path, tmp_path: Path, format: str) -> None:
    with pytest.raises(InputError, match="LinearDiT has no counterpart"):
        export(open_place(folder), tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


def test_a_softmax_dit_is_built_as_one(tmp_path: Path, folder: Path) -> None:
    options = open_place(folder).networks["transformer"].config.model_dump(exclude={"feature_map"})
    config = SoftmaxDiT.config_type(**options)
    component = Component("SoftmaxDiT", config, SoftmaxDiT(config).state_dict())
    autoencoder = open_place(folder).networks["autoencoder"].component()
    save_model(tmp_path / "dit", {"transformer": component, "autoencoder": autoencoder})
    assert isinstance(Pipeline.from_pretrained(tmp_path / "dit", device="cpu").transformer, SoftmaxDiT)


def test_the_command_draws_classes(
    folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--model", str(folder), "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--class", "dog", "--class", "0"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"dog-0.png", "0-1.png"}
    assert main([*arguments]) == 2
    assert "no prompt was given" in capsys.readouterr().err
    arguments[2] = str(tiny_model)
    assert main([*arguments, "--class", "dog", "--force"]) == 2
    assert (
        f"--class dog: {tiny_model} draws what a sentence says. Give a sentence." in capsys.readouterr().err
    )


@pytest.mark.parametrize("offload", [False, True])
def test_classes_are_drawn_within_a_bound_of_memory(pipe: Pipeline, folder: Path, offload: bool) -> None:
    settings = {"num_inference_steps": 2, "output_type": "pt"}
    bounded = Pipeline.from_pretrained(folder, device="cpu", offload=offload)
    bounded.limit_memory(4 * 10**9)
    given = bounded.classes[0]
    torch.testing.assert_close(
        bounded(given, **settings).images, pipe(given, **settings).images, rtol=0, atol=1e-5
    )
