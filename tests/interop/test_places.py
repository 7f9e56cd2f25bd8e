"""A folder of diffusers becomes a pipeline, a pipeline such a folder, and both draw the same pictures."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lineardit.diffusion.randomness import StepNoise, seeded_noise
from lineardit.errors import CheckpointError, InputError, MissingExtraError
from lineardit.interop import hub
from lineardit.interop.places import open_place
from lineardit.pipeline import Pipeline

PROMPTS = ["a red apple left of a cat", "two dogs"]
NEGATIVE = "a cat"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def drawn_by_diffusers(folder: Path, **settings: Any) -> np.ndarray:
    pipe = diffusers.SanaPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = seeded_noise((3, 8, 4), [7, 8])
    options = {"height": 64, "width": 32, "num_inference_steps": 4, "use_resolution_binning": False}
    return pipe(PROMPTS, [NEGATIVE] * 2, latents=noise, output_type="np", **options | settings).images


def drawn_by_us(pipe: Pipeline, **settings: Any) -> np.ndarray:
    return pipe(
        PROMPTS, NEGATIVE, seed=7, height=64, width=32, num_inference_steps=4, output_type="np", **settings
    ).images


@pytest.fixture(scope="module")
def pipe(published: Path) -> Pipeline:
    return Pipeline.from_pretrained(published, device="cpu")


@pytest.fixture(scope="module")
def picture(published: Path) -> np.ndarray:
    return drawn_by_diffusers(published)


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """A folder to be changed."""
    return Path(shutil.copytree(published, tmp_path / "copy"))


def test_a_folder_of_diffusers_draws_the_pictures_that_diffusers_draws(
    pipe: Pipeline, picture: np.ndarray
) -> None:
    ours = drawn_by_us(pipe)
    assert ours.shape == (2, 64, 32, 3) and ours.std() > 0.05
    np.testing.assert_allclose(ours, picture, atol=1e-4)
    assert pipe.sampling.shift == 3.0 and pipe.sampling.size == 40


def test_without_whole_times_the_pictures_would_differ(pipe: Pipeline, picture: np.ndarray) -> None:
    from dataclasses import replace

    other = Pipeline(
        pipe.transformer,
        pipe.autoencoder,
        pipe.text_encoder,
        replace(pipe.sampling, whole_times=False),
        name="other",
    )
    assert np.abs(drawn_by_us(other) - picture).max() > 1e-3


@pytest.mark.parametrize("format", ["diffusers", "native"])
def test_a_saved_pipeline_draws_the_same_pictures(
    pipe: Pipeline, picture: np.ndarray, tmp_path: Path, format: Any
) -> None:
    pipe.save_pretrained(tmp_path / "saved", format=format)
    again = Pipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.sampling == pipe.sampling
    np.testing.assert_array_equal(drawn_by_us(again), drawn_by_us(pipe))
    if format == "diffusers":
        np.testing.assert_allclose(drawn_by_diffusers(tmp_path / "saved"), picture, atol=1e-6)


def test_several_pictures_of_several_prompts_keep_their_own_prompts(pipe: Pipeline, published: Path) -> None:
    """diffusers 0.42 repeats the embeddings of each prompt but tiles the masks."""
    theirs = diffusers.SanaPipeline.from_pretrained(published)
    theirs.set_progress_bar_config(disable=True)
    options = {
        "height": 64, "width": 32, "num_inference_steps": 2, "use_resolution_binning": False,
        "output_type": "np",
    }  # fmt: skip
    seeds = [7, 8, 9, 10]
    alone = [
        theirs(PROMPTS[index // 2], NEGATIVE, latents=seeded_noise((3, 8, 4), [seed]), **options).images
        for index, seed in enumerate(seeds)
    ]
    together = theirs(
        PROMPTS, [NEGATIVE] * 2, latents=seeded_noise((3, 8, 4), seeds), num_images_per_prompt=2, **options
    ).images
    ours = pipe(
        PROMPTS, NEGATIVE, seed=seeds, num_images_per_prompt=2, height=64, width=32, num_inference_steps=2,
        output_type="np",
    ).images  # fmt: skip
    wanted = np.concatenate(alone)
    np.testing.assert_allclose(ours, wanted, atol=1e-4)
    assert np.abs(together - wanted).max() > 1e-3


def test_a_distilled_pipeline_draws_in_two_steps_what_diffusers_draws(sprint: Path) -> None:
    theirs = diffusers.SanaSprintPipeline.from_pretrained(sprint)
    theirs.set_progress_bar_config(disable=True)
    noise, fresh = seeded_noise((3, 8, 4), [7, 8]), StepNoise([7, 8])
    drawn = iter([fresh(1, noise), fresh(2, noise)])
    module = sys.modules[type(theirs.scheduler).__module__]
    original = module.randn_tensor
    module.randn_tensor = lambda *_, **__: next(drawn)
    try:
        expected = theirs(
            PROMPTS,
            latents=noise,
            height=64,
            width=32,
            num_inference_steps=2,
            guidance_scale=4.5,
            use_resolution_binning=False,
            output_type="np",
        ).images
    finally:
        module.randn_tensor = original
    ours = Pipeline.from_pretrained(sprint, device="cpu")
    assert (ours.sampling.sampler, ours.sampling.num_inference_steps) == ("scm", 2)
    images = ours(PROMPTS, seed=7, height=64, width=32, guidance_scale=4.5, output_type="np").images
    np.testing.assert_allclose(images, expected, atol=1e-4)


def test_euler_on_the_grid_of_diffusers_draws_what_diffusers_draws(copy: Path, tmp_path: Path) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.5)
    scheduler.save_pretrained(copy / "scheduler")
    change(copy / "model_index.json", scheduler=["diffusers", type(scheduler).__name__])
    pipe = Pipeline.from_pretrained(copy, device="cpu")
    expected = drawn_by_diffusers(copy)
    np.testing.assert_allclose(drawn_by_us(pipe), expected, atol=1e-4)
    pipe.save_pretrained(tmp_path / "saved", format="diffusers")
    np.testing.assert_allclose(drawn_by_diffusers(tmp_path / "saved"), expected, atol=1e-6)
    change(copy / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    with pytest.raises(CheckpointError, match="use_dynamic_shifting=True, which is not drawn with here"):
        open_place(copy)


def test_sharded_and_variant_weights_are_the_same_weights(copy: Path, pipe: Pipeline) -> None:
    whole = load_file(copy / "transformer" / WEIGHTS)
    (copy / "transformer" / WEIGHTS).unlink()
    network = diffusers.SanaTransformer2DModel.from_pretrained(pipe.name, subfolder="transformer")
    network.save_pretrained(copy / "transformer", max_shard_size="20KB")
    assert len(list((copy / "transformer").glob("*-of-*"))) > 1
    (copy / "vae" / WEIGHTS).rename(copy / "vae" / WEIGHTS.replace(".", ".fp16.", 1))
    found = Pipeline.from_pretrained(copy, device="cpu")
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(found.transformer.state_dict()[name], tensor), name
    assert sum(tensor.numel() for tensor in whole.values()) == sum(
        parameter.numel() for parameter in found.transformer.parameters()
    )


def test_weights_come_in_the_dtype_that_is_asked_for(copy: Path) -> None:
    assert Pipeline.from_pretrained(copy, device="cpu", dtype="bf16").dtype == torch.bfloat16
    file = copy / "transformer" / WEIGHTS
    tensors = load_file(file)
    tensors["proj_out.bias"][1] = 7e4
    save_file(tensors, file)
    assert Pipeline.from_pretrained(copy, device="cpu").dtype == torch.float32
    with pytest.raises(InputError, match=r"to_velocity.bias has a number of size 7e\+04, too large for fp16"):
        Pipeline.from_pretrained(copy, device="cpu", dtype="fp16")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda at: cut(at / "vae" / WEIGHTS), r"vae/diffusion_pytorch_model.safetensors is cut off"),
        (
            lambda at: change(at / "model_index.json", _class_name="FluxPipeline"),
            "is a FluxPipeline. What is read here is one of SanaPipeline",
        ),
        (
            lambda at: change(at / "model_index.json", vae=["diffusers", "AutoencoderKL"]),
            "vae is a AutoencoderKL; what fits into a SanaPipeline is a AutoencoderDC",
        ),
        (
            lambda at: change(at / "model_index.json", text_encoder=["transformers", "CLIPTextModel"]),
            "the text encoder is a CLIPTextModel. Read are Gemma2Model",
        ),
        (
            lambda at: change(at / "vae" / "config.json", latent_channels=6),
            r"vae does not fit Autoencoder",
        ),
        (
            lambda at: change(at / "text_encoder" / "config.json", hidden_size=30),
            "its text encoder gives vectors of width 30, the transformer takes width 28",
        ),
        (lambda at: (at / "vae" / WEIGHTS).unlink(), "vae holds no weights: there is no diffusion_pytorch"),
        (lambda at: (at / "transformer" / "config.json").write_text("{"), "config.json is damaged"),
        (lambda at: (at / "vae" / "config.json").write_text("[" * 100_000), "config.json is damaged"),
        (
            lambda at: change(at / "model_index.json", text_encoder=["transformers", ["Gemma2Model"]]),
            r"the text encoder is a \[.Gemma2Model.\]. Read are Gemma2Model",
        ),
        (lambda at: shutil.rmtree(at / "tokenizer"), "no folder tokenizer beside it"),
        (lambda at: (at / "lineardit.json").write_text("{}"), "holds two models"),
        (
            lambda at: change(at / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler"),
            "is a DDIMScheduler. Read are DPMSolverMultistepScheduler",
        ),
        (
            lambda at: change(at / "scheduler" / "scheduler_config.json", use_flow_sigmas=False),
            "with use_flow_sigmas=False",
        ),
        (
            lambda at: change(at / "scheduler" / "scheduler_config.json", solver_order=3),
            "solver_order=3, which is not drawn with here: only 2 is",
        ),
        (
            lambda at: change(at / "scheduler" / "scheduler_config.json", flow_shift=0),
            "flow_shift=0: it must be a positive number",
        ),
        (
            lambda at: change(at / "model_index.json", text_encoder=[None, None]),
            "holds no text_encoder: a pipeline needs all three",
        ),
        (
            lambda at: rewrite(at / "transformer" / WEIGHTS, lambda tensors: tensors.pop("proj_out.bias")),
            r"missing \(1\): proj_out.bias \(here to_velocity.bias\)",
        ),
        (
            lambda at: rewrite(
                at / "text_encoder" / "model.safetensors", lambda tensors: tensors.pop("norm.weight")
            ),
            "text_encoder does not fit Gemma2Model: missing or of another shape are 1 tensors, such as norm",
        ),
    ],
)
def test_a_folder_that_is_no_whole_sana_is_refused_with_what_was_found(
    copy: Path, spoil: Callable[[Path], object], complaint: str
) -> None:
    spoil(copy)
    with pytest.raises(CheckpointError, match=complaint):
        Pipeline.from_pretrained(copy, device="cpu")


def test_a_missing_shard_is_named(copy: Path) -> None:
    folder = copy / "transformer"
    network = diffusers.SanaTransformer2DModel.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    network.save_pretrained(folder, max_shard_size="20KB")
    first = min(folder.glob("*-of-*"))
    first.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of \d+ files of its weights: {first.name}"):
        open_place(copy)


def test_everything_that_does_not_fit_is_in_one_error(copy: Path) -> None:
    file = copy / "transformer" / WEIGHTS

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["caption_norm.weight"]
        tensors["head.bias"] = torch.zeros(3)
        tensors["proj_out.bias"] = torch.zeros(4)

    rewrite(file, edit)
    with pytest.raises(CheckpointError) as caught:
        open_place(copy)
    assert str(caught.value).splitlines() == [
        f"{file.parent} does not fit Transformer:",
        "  missing (1): caption_norm.weight (here prompt_projection.norm.weight)",
        "  unknown (1): head.bias",
        "  other shape (1): proj_out.bias is (4,), the model has (3,)",
    ]


def test_one_network_of_a_pipeline_is_a_place_too(published: Path) -> None:
    assert open_place(published / "transformer").missing == ["autoencoder", "text_encoder"]
    assert list(open_place(published / "vae" / WEIGHTS).networks) == ["autoencoder"]
    with pytest.raises(CheckpointError, match="holds a gemma2. What is read here is one of Sana"):
        open_place(published / "text_encoder")


def test_a_hub_id_without_a_network_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CheckpointError, match="nobody/nothing is no folder here, not among .* hf download"
    ) as one:
        open_place("nobody/nothing")
    assert "\n" not in str(one.value)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(hub, "find_spec", lambda name: None if name == "huggingface_hub" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'lineardit\[hub\]'"):
        open_place("nobody/nothing")


def test_a_hub_id_that_is_at_hand_is_read_without_asking_the_network(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(published)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_place("somebody/sana").path == published
    patterns = asked[0].pop("allow_patterns")
    assert asked == [{"name": "somebody/sana", "local_files_only": True}]
    assert {"*.json", "*.safetensors", "checkpoints/*.pth"} <= {*patterns}


def test_a_model_that_was_fetched_before_is_found_without_asking_the_network(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As huggingface_hub keeps it: with a list of all files of the model, of which not all were wanted."""
    import huggingface_hub

    commit, kept = "0123456789" * 4, tmp_path / "hub" / "models--somebody--sana"
    snapshot = kept / "snapshots" / commit
    shutil.copytree(published, snapshot)
    files = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()]
    listed = {name: {"size": 1, "blob_id": "0" * 40} for name in [*files, "README.md", ".gitattributes"]}
    for name, content in (
        ("refs/main", commit),
        (f"trees/{commit}.json", json.dumps({"format_version": 1, "files": listed})),
    ):
        (kept / name).parent.mkdir()
        (kept / name).write_text(content)
    asked: list[dict[str, Any]] = []
    download = huggingface_hub.snapshot_download

    def counted(name: str, **options: Any) -> str:
        asked.append(options)
        return str(download(name, **options))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", counted)
    assert open_place("somebody/sana").path.resolve() == snapshot.resolve()
    assert [options.get("local_files_only") for options in asked] == [True]


def test_one_official_file_of_a_hub_id_is_a_place(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, dict[str, Any]]] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path / "sana.pth")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.resolve("hf://somebody/Sana/checkpoints/sana.pth") == tmp_path / "sana.pth"
    assert asked == [("somebody/Sana", {"filename": "checkpoints/sana.pth", "local_files_only": True})]
    with pytest.raises(CheckpointError, match="somebody/Sana/sana.pth is no folder and no file here"):
        hub.resolve("somebody/Sana/sana.pth")


@pytest.mark.parametrize("place", ["", "gone.safetensors", "readme.txt"])
def test_what_is_no_model_gets_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(CheckpointError) as caught:
        open_place(tmp_path / place)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
