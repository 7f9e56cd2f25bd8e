"""LoRA files of peft and of diffusers give what peft gives, alone and together, and leave no trace."""

import copy
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lineardit.cli.app import main
from lineardit.config.models import TransformerConfig
from lineardit.config.presets import differing
from lineardit.errors import CheckpointError, InputError
from lineardit.interop.diffusers import from_diffusers_transformer
from lineardit.interop.diffusers_config import transformer_config_to_diffusers
from lineardit.interop.lora import (
    add_lora,
    loras,
    merge_loras,
    read_lora,
    unload_loras,
    weigh_loras,
)
from lineardit.pipeline import Pipeline
from lineardit.transformer.model import Transformer

SMALL = TransformerConfig(latent_channels=3, depth=2, width=40, head_dim=4, cross_head_dim=20, text_width=11)
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv_inverted", "conv_point", "linear_1", "proj_out"]
EQUAL = {"rtol": 1e-5, "atol": 1e-5}


def published() -> Any:
    options = transformer_config_to_diffusers(SMALL)
    options.pop("_class_name")
    torch.manual_seed(0)
    network = diffusers.SanaTransformer2DModel(**options).eval()
    for tensor in network.state_dict().values():
        if tensor.dim() > 1:
            tensor.normal_(std=1 / tensor[0].numel() ** 0.5)
    return network


def adapted(network: Any, name: str, **options: Any) -> Any:
    """Add a LoRA that matters: peft starts with one that adds nothing."""
    network.add_adapter(peft.LoraConfig(target_modules=TARGETS, init_lora_weights=False, **options), name)
    return network


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(1)
    network = adapted(published(), "style", r=3, lora_alpha=6)
    return adapted(network, "subject", r=2, lora_alpha=5, use_rslora=True)


@pytest.fixture(scope="module")
def files(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each LoRA in the folder of peft, and the first as diffusers writes it."""
    folder = tmp_path_factory.mktemp("lora")
    for name in ("style", "subject"):
        (folder / name).mkdir()
        state = peft.get_peft_model_state_dict(theirs, adapter_name=name)
        save_file(
            {f"base_model.model.{key}": tensor.contiguous() for key, tensor in state.items()},
            folder / name / "adapter_model.safetensors",
        )
        theirs.peft_config[name].save_pretrained(folder / name)
    state = peft.get_peft_model_state_dict(theirs, adapter_name="style")
    diffusers.SanaPipeline.save_lora_weights(
        folder / "diffusers",
        transformer_lora_layers=state,
        transformer_lora_adapter_metadata=theirs.peft_config["style"].to_dict(),
    )
    return {path.name: path for path in folder.iterdir()}


def ours() -> Transformer:
    network = Transformer(SMALL).eval()
    network.load_state_dict(from_diffusers_transformer(SMALL, published().state_dict()))
    return network


@torch.no_grad()
def velocity(network: Transformer) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 3, 4, 6, generator=generator)
    return network(latents, torch.tensor([0.25, 0.75]), torch.randn(2, 5, 11, generator=generator))


@torch.no_grad()
def expected(theirs: Any, names: list[str], weights: list[float]) -> Tensor:
    theirs.set_adapters(names, weights)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 3, 4, 6, generator=generator)
    text = torch.randn(2, 5, 11, generator=generator)
    out: Tensor = theirs(latents, text, timestep=torch.tensor([250.0, 750.0]), return_dict=False)[0]
    return out


@pytest.mark.parametrize("name", ["style", "subject", "diffusers"])
def test_a_lora_gives_what_peft_gives(theirs: Any, files: dict[str, Path], name: str) -> None:
    network = ours()
    add_lora(network, read_lora(files[name]), "one")
    peft_name = "style" if name == "diffusers" else name
    wanted = expected(theirs, [peft_name], [1.0])
    assert (velocity(ours()) - wanted).abs().max() > 0.1
    torch.testing.assert_close(velocity(network), wanted, **EQUAL)


def test_several_with_weights_give_what_peft_gives_merged_too(theirs: Any, files: dict[str, Path]) -> None:
    network = ours()
    add_lora(network, read_lora(files["style"]), "style", 0.7)
    add_lora(network, read_lora(files["subject"]), "subject")
    weigh_loras(network, {"subject": -0.4})
    assert loras(network) == {"style": 0.7, "subject": -0.4}
    wanted = expected(theirs, ["style", "subject"], [0.7, -0.4])
    torch.testing.assert_close(velocity(network), wanted, **EQUAL)
    merge_loras(network)
    assert loras(network) == {} and network.state_dict().keys() == ours().state_dict().keys()
    torch.testing.assert_close(velocity(network), wanted, **EQUAL)


def test_unloading_gives_the_layers_back_to_the_bit(files: dict[str, Path]) -> None:
    network = ours()
    before = copy.deepcopy(network.state_dict())
    add_lora(network, read_lora(files["style"]), "style")
    alone = velocity(network)
    add_lora(network, read_lora(files["subject"]), "subject")
    unload_loras(network, "subject")
    assert torch.equal(velocity(network), alone)
    unload_loras(network)
    after = network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_older_spellings_and_alphas_mean_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    old = {}
    for name, tensor in load_file(files["diffusers"] / "pytorch_lora_weights.safetensors").items():
        module = name.rpartition(".lora_")[0]
        old[name.replace("lora_A", "lora.down").replace("lora_B", "lora.up")] = tensor
        old[f"{module}.alpha"] = torch.tensor(6.0)
    save_file(old, tmp_path / "old.safetensors")
    new, found = read_lora(files["diffusers"]).factors, read_lora(tmp_path / "old.safetensors").factors
    assert new.keys() == found.keys()
    for module, factors in found.items():
        assert torch.equal(factors.up, new[module].up) and factors.scale == new[module].scale == 2.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"depth": 1}, "has no linear layer transformer_blocks.1"),
        ({"width": 80}, "goes from 11 to 40, here from 11 to 80"),
    ],
)
def test_a_lora_for_another_model_is_refused_and_nothing_is_added(
    files: dict[str, Path], change: dict[str, int], complaint: str
) -> None:
    network = Transformer(differing(SMALL, **change))
    with pytest.raises(CheckpointError, match=f"is a LoRA for another model: .*{complaint}") as caught:
        add_lora(network, read_lora(files["style"]), "style")
    assert "\n" not in str(caught.value) and loras(network) == {}


def test_info_says_what_a_lora_adds(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    import json

    for name in ("style", "diffusers"):
        assert main(["info", str(files[name]), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)["lora"]
        assert (facts["ranks"], facts["scales"], facts["dtype"]) == ([3], [2.0], "float32")
        assert facts["layers"] == len(read_lora(files[name]).factors) and facts["for_width"] == 40
    assert main(["info", str(files["style"] / "adapter_model.safetensors")]) == 0


def test_names_and_weights_that_make_no_sense_are_refused(files: dict[str, Path]) -> None:
    network, lora = ours(), read_lora(files["style"])
    with pytest.raises(InputError, match="cannot name a LoRA"):
        add_lora(network, lora, "a.b")
    with pytest.raises(InputError, match="the weight nan of the LoRA style is no finite number"):
        add_lora(network, lora, "style", float("nan"))
    with pytest.raises(InputError, match="no LoRA called style is loaded. None is loaded"):
        unload_loras(network, "style")
    add_lora(network, lora, "style")
    with pytest.raises(InputError, match="a LoRA called style is loaded already"):
        add_lora(network, lora, "style")
    with pytest.raises(InputError, match="no LoRA called other is loaded. Loaded are style"):
        weigh_loras(network, {"other": 1.0})


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({}, "holds no LoRA"),
        ({"transformer.x.lora_A.weight": torch.zeros(2, 3)}, "x lacks one of its two factors"),
        (
            {"x.lora_A.weight": torch.zeros(0, 3), "x.lora_B.weight": torch.zeros(4, 0)},
            "the factors of x have rank 0",
        ),
        (
            {
                "x.lora_A.weight": torch.zeros(2, 3),
                "x.lora_B.weight": torch.zeros(4, 2),
                "x.alpha": torch.ones(2),
            },
            r"with x.alpha=\[1.0, 1.0\]: it must be a finite number",
        ),
        (
            {"x.lora_A.weight": torch.zeros(2, 3), "x.lora_B.weight": torch.zeros(3, 4)},
            "are of different ranks",
        ),
        ({"text_encoder.embed.weight": torch.zeros(2, 3)}, "is no LoRA of a transformer: it holds text_enc"),
        (
            {"x.lora_A.weight": torch.zeros(2, 3, 3, 3), "x.lora_B.weight": torch.zeros(3, 2, 1, 1)},
            "adds to x, a convolution over neighbours",
        ),
    ],
)
def test_a_file_that_is_no_lora_gets_one_line(
    tmp_path: Path, tensors: dict[str, Tensor], complaint: str
) -> None:
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_lora(tmp_path / "lora.safetensors")
    assert "\n" not in str(caught.value)


def pair(rank: int) -> dict[str, Tensor]:
    return {"x.to_q.lora_A.weight": torch.zeros(rank, 3), "x.to_q.lora_B.weight": torch.zeros(4, rank)}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ('{"lora_alpha": null}', "with lora_alpha=None: it must be a finite number"),
        ('{"lora_alpha": "8"}', "with lora_alpha='8': it must be a finite number"),
        ('{"lora_alpha": true}', "with lora_alpha=True: it must be a finite number"),
        ('{"lora_alpha": Infinity}', "with lora_alpha=inf: it must be a finite number"),
        pytest.param(f'{{"lora_alpha": 1{"0" * 400}}}', "with lora_alpha=10+: it must be a", id="huge"),
        ('{"alpha_pattern": {"*.to_q": 8}}', r"with '\*\.to_q' in alpha_pattern, which is no regular"),
        pytest.param(f'{{"alpha_pattern": {{"{"(" * 9999}": 8}}}}', "is no regular", id="brackets"),
        ('{"alpha_pattern": {"to_q": null}}', r"with alpha_pattern\['to_q'\]=None: it must be a finite"),
        ('{"alpha_pattern": ["to_q"]}', r"with alpha_pattern=\['to_q'\]: it must be an object"),
        pytest.param("[" * 100_000, "adapter_config.json is damaged", id="deep"),
    ],
)
def test_options_that_make_no_sense_get_one_line(tmp_path: Path, options: str, complaint: str) -> None:
    save_file(pair(2), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(options)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_lora(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("said", ["[]", "3", "null", "{", pytest.param("[" * 100_000, id="deep")])
def test_a_header_without_options_gets_one_line(tmp_path: Path, said: str) -> None:
    save_file(pair(2), tmp_path / "x.safetensors", {"lora_adapter_metadata": said})
    with pytest.raises(CheckpointError, match="has a header that is damaged: lora_adapter_metadata holds no"):
        read_lora(tmp_path / "x.safetensors")


def test_a_layer_that_a_pattern_names_has_that_alpha(tmp_path: Path) -> None:
    tensors = {
        name.replace("to_q", layer): tensor
        for layer in ("to_q", "to_k", "to_v")
        for name, tensor in pair(2).items()
    }
    save_file(tensors | {"x.to_v.alpha": torch.tensor([5.0])}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 4, "alpha_pattern": {"to_q": 8.0, "x": 1}}')
    scales = {name: factors.scale for name, factors in read_lora(tmp_path).factors.items()}
    assert scales == {"x.to_q": 4.0, "x.to_k": 2.0, "x.to_v": 2.5}


def test_a_folder_without_a_lora_and_one_of_another_kind_are_refused(
    files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="holds no LoRA: there must be one of adapter_model"):
        read_lora(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(
        (files["style"] / "adapter_model.safetensors").read_bytes()
    )
    (tmp_path / "adapter_config.json").write_text('{"bias": "all"}')
    with pytest.raises(CheckpointError, match="with bias='all', which is not read: use bias='none'"):
        read_lora(tmp_path)


@pytest.fixture
def own_lora(tmp_path: Path) -> Path:
    """For the tiny model: its names are those that peft gives to a LoRA of our own transformer."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "blocks.0.attention.to_qkv.lora_A.weight": torch.randn(2, 16, generator=generator),
        "blocks.0.attention.to_qkv.lora_B.weight": torch.randn(48, 2, generator=generator),
    }
    save_file(tensors, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def test_a_pipeline_weighs_merges_and_unloads_loras_and_says_so(
    tiny_model: Path, own_lora: Path, tmp_path: Path
) -> None:
    pipe = Pipeline.from_pretrained(tiny_model, device="cpu")

    def drawn(pipe: Pipeline) -> tuple[Tensor, str]:
        output = pipe("two dogs", output_type="pt")
        return output.images, output.settings[0].model

    plain, called = drawn(pipe)
    assert [pipe.load_lora(own_lora, 0.5), pipe.load_lora(own_lora, name="b")] == ["lora0", "b"]
    with pytest.raises(InputError, match="a LoRA called b is loaded already"):
        pipe.load_lora(own_lora, name="b")
    both, told = drawn(pipe)
    assert told == f"{called} + {own_lora} x 0.5 + {own_lora} x 1" and not torch.equal(both, plain)
    pipe.weigh_loras(b=1.5, lora0=0.0)
    torch.testing.assert_close(drawn(pipe)[0], both)
    pipe.unload_loras()
    assert torch.equal(drawn(pipe)[0], plain) and drawn(pipe)[1] == called
    pipe.load_lora(own_lora, 1.5)
    with pytest.raises(InputError, match="LoRAs are loaded beside the layers: lora0. Merge or unload"):
        pipe.save_pretrained(tmp_path / "merged")
    pipe.merge_loras()
    pipe.save_pretrained(tmp_path / "merged")
    images, told = drawn(Pipeline.from_pretrained(tmp_path / "merged", device="cpu"))
    torch.testing.assert_close(images, both, rtol=1e-4, atol=1e-4)
    assert drawn(pipe)[1] == f"{called} + {own_lora} x 1.5" and told == str(tmp_path / "merged")


def test_the_command_line_draws_with_loras_and_says_so(
    tiny_model: Path, own_lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    place = str(own_lora)
    command = ["generate", "two dogs", "--model", str(tiny_model), "--device", "cpu", "-o"]
    pictures = []
    for name, more in (("plain", []), ("off", ["--lora", f"{place}:0"]), ("on", ["--lora", place])):
        assert main([*command, str(tmp_path / f"{name}.png"), *more]) == 0
        with Image.open(tmp_path / f"{name}.png") as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[1] != pictures[2]
    capsys.readouterr()
    assert main(["info", str(tmp_path / "on.png"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["lineardit"]["model"]
    assert told == f"{tiny_model} + {place} x 1"
    assert main([*command, str(tmp_path / "x.png"), "--lora", f"{place}:much"]) == 2
    assert "'much' is no number. Use" in capsys.readouterr().err
    colon = tmp_path / "a:b.safetensors"
    colon.write_bytes(own_lora.read_bytes())
    assert main([*command, str(tmp_path / "y.png"), "--lora", str(colon)]) == 0
