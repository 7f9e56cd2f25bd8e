"""Official names, both ways; diffusers' own converters are run as oracles on the same tensors."""

import pickle
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_autoencoder_dc_checkpoint_to_diffusers,
    convert_sana_transformer_to_diffusers,
)
from safetensors.torch import save_file
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, StageConfig, TransformerConfig
from lineardit.config.presets import AUTOENCODERS, TRANSFORMERS, differing
from lineardit.errors import CheckpointError
from lineardit.interop.diffusers import from_diffusers_autoencoder, from_diffusers_transformer
from lineardit.interop.official import (
    autoencoder_renaming,
    controlnet_of,
    controlnet_renaming,
    from_official_autoencoder,
    from_official_transformer,
    guess_autoencoder,
    guess_transformer,
    to_official_autoencoder,
    to_official_transformer,
    transformer_renaming,
    with_controlnet,
)
from lineardit.interop.pickles import open_pickle, write_pickle
from lineardit.interop.places import open_place
from lineardit.interop.stored import LazyTensors, Stored, stored_of
from lineardit.transformer.model import Transformer

SMALL = TransformerConfig(latent_channels=3, depth=2, width=40, head_dim=4, cross_head_dim=20, text_width=11)


def drawn(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def official_transformer(config: TransformerConfig) -> dict[str, Tensor]:
    """All that a file of NVlabs/Sana holds, what has no place here included."""
    extra = {"pos_embed": torch.zeros(1, 16, config.width), "y_embedder.y_embedding": torch.randn(30, 11)}
    return drawn(transformer_renaming(config).foreign_shapes) | extra


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_an_official_transformer_becomes_what_the_converter_of_diffusers_makes_of_it() -> None:
    official = official_transformer(SMALL)
    understood = from_official_transformer(official, "sana.pth", SMALL)
    theirs = convert_sana_transformer_to_diffusers(dict(official))
    assert equal(dict(understood.tensors), dict(from_diffusers_transformer(SMALL, theirs)))
    assert list(understood.spare) == ["y_embedder.y_embedding"]
    back = to_official_transformer(SMALL, understood.tensors, "x", understood.spare)
    assert equal(dict(back), {name: tensor for name, tensor in official.items() if name != "pos_embed"})


@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": True}, {"qk_norm": True, "guidance_embedding": True, "patch_size": 2}],
)
def test_an_official_transformer_comes_back_bit_by_bit(changes: dict[str, object]) -> None:
    config = differing(SMALL, **changes)
    official = drawn(transformer_renaming(config).foreign_shapes)
    own = from_official_transformer(official, "sana.pth", config).tensors
    Transformer(config).load_state_dict(own)
    assert equal(dict(to_official_transformer(config, dict(own))), official)


def test_an_official_controlnet_is_two_networks_that_share_their_embedders() -> None:
    """The names are those that diffusers' script for ControlNets reads."""
    steered, control = differing(SMALL, depth=3), differing(SMALL, depth=2)
    shapes = transformer_renaming(steered).foreign_shapes | controlnet_renaming(control).foreign_shapes
    official = LazyTensors(stored_of(drawn(shapes)), drawn(shapes).__getitem__)
    assert "controlnet.0.before_proj.weight" in official and "controlnet.1.after_proj.bias" in official
    found = controlnet_of(official, steered, "sana.pth")
    assert found.config == control
    blocks = {name: tensor for name, tensor in official.items() if name.startswith("controlnet.")}
    assert torch.equal(
        found.tensors["blocks.1.cross_attention.to_q.bias"],
        blocks["controlnet.1.copied_block.cross_attn.q_linear.bias"],
    )
    assert torch.equal(found.tensors["patchify.weight"], official["x_embedder.proj.weight"])
    plain = official.only(transformer_renaming(steered).foreign_shapes)
    back = with_controlnet(plain, control, found.tensors, "model")
    assert equal(dict(back), dict(official))
    other = dict(found.tensors) | {"prompt_projection.norm.weight": torch.zeros(40)}
    with pytest.raises(CheckpointError, match="has one attention_y_norm.weight for the transformer and its"):
        with_controlnet(plain, control, other, "model")


def headers(config: TransformerConfig) -> LazyTensors:
    """A file of a full-size transformer without its numbers."""
    shapes = transformer_renaming(config).foreign_shapes
    stored = {name: Stored("F32", tuple(shape)) for name, shape in shapes.items()}
    return LazyTensors(stored, lambda name: torch.empty(shapes[name], device="meta"))


# Counted by hand from the layers: blocks of 6D + 5D^2 + ... numbers, and what stands around them.
COUNTS = {
    "sana-0.6b": 591_747_872,
    "sana-1.6b": 1_604_462_752,
    "sana-1.5-1.6b": 1_604_641_952,
    "sana-1.5-4.8b": 4_721_825_952,
    "sana-sprint-0.6b": 593_501_216,
    "sana-sprint-1.6b": 1_610_237_472,
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_published_transformer_is_recognised_by_its_names_and_shapes(name: str) -> None:
    tensors = headers(TRANSFORMERS[name])
    assert guess_transformer(tensors, "sana.pth") == TRANSFORMERS[name]
    count = sum(torch.Size(each.shape).numel() for each in tensors.stored.values())
    assert count == COUNTS[name]


@pytest.mark.parametrize(("base", "interpolation"), [(64, 1.0), (128, 2.0)])
def test_positions_are_written_and_recognised(base: int, interpolation: float) -> None:
    config = differing(
        TRANSFORMERS["sana-0.6b"],
        position="sincos",
        position_base=base // 8,
        position_interpolation=interpolation,
    )
    tensors = headers(config)
    official = to_official_transformer(config, on_meta(config))
    stored = tensors.stored | {"pos_embed": official.stored["pos_embed"]}
    both = LazyTensors(stored, lambda name: official[name].bfloat16())
    assert guess_transformer(both, "sana.pth") == config


def on_meta(config: TransformerConfig) -> dict[str, Tensor]:  # noqa: N802
    with torch.device("meta"):
        return Transformer(config).state_dict()


def test_strange_positions_are_refused() -> None:
    config = TRANSFORMERS["sana-0.6b"]
    stored = headers(config).stored | {"pos_embed": Stored("F32", (1, 16, config.width))}
    tensors = LazyTensors(stored, lambda name: torch.ones(1, 16, config.width))
    with pytest.raises(CheckpointError, match="has positions that are neither those of SANA at 2K nor at 4K"):
        guess_transformer(tensors, "sana.pth")


def test_a_width_that_was_never_published_is_refused() -> None:
    with pytest.raises(CheckpointError, match="of width 40, .* Published are 1152 and 2240"):
        guess_transformer(headers(SMALL), "sana.pth")


def stages(depths: tuple[int, ...], norm: str = "rms", kernels: tuple[int, ...] = ()) -> list[StageConfig]:
    activation = "relu" if norm == "batch" else "silu"
    return [
        StageConfig(width=8, depth=depths[0], norm=norm, activation=activation),
        StageConfig(width=16, depth=depths[1], norm=norm, activation=activation),
        StageConfig(width=16, depth=depths[2], block="efficientvit", kernels=kernels),
    ]


SANA = AutoencoderConfig(
    latent_channels=4,
    encoder=stages((1, 2, 1), kernels=(5,)),
    decoder=stages((1, 1, 2), kernels=(5,)),
    attention_head_dim=8,
    downsample="conv",
    upsample="interpolate",
)
MIX = AutoencoderConfig(
    latent_channels=4,
    encoder=stages((0, 2, 1)),
    decoder=stages((0, 1, 2), norm="batch"),
    attention_head_dim=8,
)


@pytest.mark.parametrize("config", [SANA, MIX], ids=["sana", "mix"])
def test_an_official_autoencoder_becomes_what_the_converter_of_diffusers_makes_of_it(
    config: AutoencoderConfig,
) -> None:
    official = drawn(autoencoder_renaming(config).foreign_shapes)
    own = dict(from_official_autoencoder(config, official))
    theirs = convert_autoencoder_dc_checkpoint_to_diffusers(dict(official))
    assert equal(own, dict(from_diffusers_autoencoder(config, theirs)))
    Autoencoder(config).load_state_dict(own)
    assert equal(dict(to_official_autoencoder(config, own)), official)


def test_published_autoencoders_are_recognised_by_their_shapes_and_names() -> None:
    for name in ("dc-ae-f32c32-sana-1.1", "dc-ae-f64c128-mix-1.0"):
        shapes = autoencoder_renaming(AUTOENCODERS[name]).foreign_shapes
        stored = {key: Stored("F32", tuple(shape)) for key, shape in shapes.items()}
        tensors = LazyTensors(stored, lambda key: torch.empty(0))
        assert guess_autoencoder(tensors, "x", f"/models/{name}/model.pt") == AUTOENCODERS[name]
    with pytest.raises(
        CheckpointError, match="may be dc-ae-f64c128-in-1.0 or dc-ae-f64c128-mix-1.0, which differ only in"
    ):
        guess_autoencoder(tensors, "model.pt")
    del stored["decoder.project_in.main.conv.bias"]
    with pytest.raises(CheckpointError, match="is a DC-AE with 128 latent channels, but none that was pub"):
        guess_autoencoder(LazyTensors(stored, tensors._read), "model.pt")


def test_folders_of_official_releases_are_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder beside a config.json that only names it, and a transformer below checkpoints/."""
    named = {"dc-ae-in": MIX, "dc-ae-mix": differing(MIX, latent_scale=(0.5,))}
    monkeypatch.setattr("lineardit.interop.official.AUTOENCODERS", named)
    monkeypatch.setattr("lineardit.interop.official.TRANSFORMERS", {"small": SMALL})
    monkeypatch.setattr("lineardit.interop.official.HEAD_DIM", SMALL.head_dim)
    folder = tmp_path / "autoencoder"
    folder.mkdir()
    save_file(drawn(autoencoder_renaming(MIX).foreign_shapes), folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_name": "dc-ae-mix"}')
    for place in (folder, folder / "model.safetensors"):
        assert open_place(place).networks["autoencoder"].config == named["dc-ae-mix"]
    release = tmp_path / "Sana" / "checkpoints"
    release.mkdir(parents=True)
    positions = {"pos_embed": torch.zeros(1, 16, SMALL.width)}
    write_pickle(release / "sana.pth", official_transformer(SMALL) | positions)
    found = open_place(tmp_path / "Sana")
    assert found.networks["transformer"].config == differing(SMALL, position_base=4)
    assert found.sampling == {"shift": 3.0, "sampler": "dpm++", "whole_times": True}


# Files.


def test_a_pickle_of_tensors_is_read_whatever_wraps_them(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(3, 2), "b": torch.arange(3)}
    write_pickle(tmp_path / "ours.pth", tensors)
    torch.save(tensors, tmp_path / "bare.pth")
    torch.save({"epoch": 3, "model": {"state_dict": tensors}}, tmp_path / "deep.pth")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("ours", "bare", "deep", "old"):
        assert equal(dict(open_pickle(tmp_path / f"{name}.pth")), tensors), name


class Bomb:
    """What a hostile pickle does when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_that_would_run_code_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bomb.pth"
    torch.save({"state_dict": {"x": Bomb()}}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=r"wants to call (posix|os)\.mkdir .* could run code") as caught:
        open_pickle(path)
    assert "\n" not in str(caught.value) and not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cut off or damaged"),
        (b"PK\x03\x04 nothing", "cut off or damaged"),
        (pickle.dumps({"state_dict": {}}, protocol=2), "cut off or damaged"),
    ],
)
def test_a_damaged_pickle_gets_one_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "sana.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        open_place(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_pickle_without_tensors_gets_one_line(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="no checkpoint of a network: there are no tensors by name"):
        open_place(tmp_path / "empty.pth")
    torch.save({"state_dict": {"x": torch.zeros(1), "y": "z"}}, tmp_path / "strange.pth")
    with pytest.raises(CheckpointError, match="no checkpoint of a network: y in it is no tensor"):
        open_place(tmp_path / "strange.pth")


def test_a_truncated_pickle_gets_one_line(tmp_path: Path) -> None:
    write_pickle(tmp_path / "sana.pth", official_transformer(SMALL))
    content = (tmp_path / "sana.pth").read_bytes()
    (tmp_path / "sana.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is cut off or damaged"):
        open_place(tmp_path / "sana.pth")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "looks like FLUX"),
        ("model.diffusion_model.input_blocks.0.0.weight", "looks like Stable Diffusion or SDXL"),
        ("transformer.blocks.0.lora_A.weight", "looks like a LoRA"),
        ("something.weight", "is of a kind that is not known here"),
    ],
)
def test_files_of_other_models_are_called_by_their_name(tmp_path: Path, name: str, family: str) -> None:
    save_file({name: torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=family):
        open_place(tmp_path / "model.safetensors")


def test_names_with_a_prefix_of_another_program_are_understood(tmp_path: Path) -> None:
    official = {
        f"model.diffusion_model.{name}": torch.zeros(shape)
        for name, shape in transformer_renaming(SMALL).foreign_shapes.items()
    }
    save_file(official, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="of width 40"):  # that far: the names were found
        open_place(tmp_path / "model.safetensors")
