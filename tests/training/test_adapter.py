"""Training a LoRA: the base stays to the bit, checkpoints hold the LoRA alone, and it is drawn with."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lineardit.cli.app import main
from lineardit.config.adapter import AdapterConfig
from lineardit.config.files import parse_run
from lineardit.config.finetune import FinetuneRun
from lineardit.errors import ConfigError, OutputError
from lineardit.interop.native import load_transformer
from lineardit.training.adapter import Adapter
from lineardit.training.checkpoint import load_newest
from lineardit.training.finetune import FinetuneTask, train_finetune

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of 24 pixels with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    levels = np.random.default_rng(0).integers(0, 256, (5, 3, 3, 3), np.uint8)
    for number, each in enumerate(levels):
        Image.fromarray(each).resize((24, 24)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red apple left of a cat", "utf-8")
    out = tmp_path_factory.mktemp("data") / "prepared"
    arguments = ["prepare", str(folder), "-o", str(out), "--model", str(tiny_model), "--processes", "1"]
    assert main(arguments) == 0
    return out


def recipe(base: Path, data: Path, *overrides: str) -> FinetuneRun:
    text = f"""
    kind = "finetune"
    base = "{base}"
    data = "{data}"
    method = "lora"
    adapter = {{ rank = 2, alpha = 4.0 }}
    sample = {{ prompts = ["a cat"], num_inference_steps = 2 }}
    train = {{ steps = 4, batch_size = 2, dtype = "fp32", warmup_steps = 0, learning_rate = 1e-2 }}
    """
    run = parse_run(text, overrides)
    assert isinstance(run, FinetuneRun)
    return run


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_lora_is_trained_alone_and_drawn_with(
    method: str, tiny_model: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recipe(tiny_model, prepared, f"method={method}", "train.ema_half_life=1")
    place = train_finetune(run, tmp_path / "run", resume=False, device=CPU)
    found = load_newest(tmp_path / "run")
    assert found is not None
    kinds = {"down", "up"} | ({"magnitude"} if method == "dora" else set())
    names = set(found.tensors["model"])
    assert {name.rpartition("/")[2] for name in names} == kinds and names == set(found.tensors["ema"])
    assert len(names) == 8 * len(kinds)
    moved = [name for name, each in found.tensors["model"].items() if name.endswith("up") and each.any()]
    assert len(moved) == 8
    # The averaged numbers are those that are written.
    from safetensors.torch import load_file

    written = load_file(place / "adapter_model.safetensors")
    key = "transformer_blocks.0.attn1.to_k"
    averaged = found.tensors["ema"][f"{key}.up".replace(".", "/")]
    assert torch.equal(written[f"base_model.model.{key}.lora_B.weight"], averaged)
    assert not torch.equal(averaged, found.tensors["model"][f"{key}.up".replace(".", "/")])
    draw = ["generate", "a cat", "--model", str(tiny_model), "--num-inference-steps", "2"]
    assert main([*draw, "-o", str(tmp_path / "plain.png")]) == 0
    assert main([*draw, "-o", str(tmp_path / "lora.png"), "--lora", str(place)]) == 0
    plain, with_lora = (np.array(Image.open(tmp_path / name)) for name in ("plain.png", "lora.png"))
    assert (plain != with_lora).any()


def test_the_base_stays_to_the_bit_and_a_copy_has_numbers_of_its_own(tiny_model: Path) -> None:
    transformer, untouched = load_transformer(tiny_model), load_transformer(tiny_model)
    generator = torch.Generator().manual_seed(0)
    adapter = Adapter.fresh(transformer, AdapterConfig(rank=2), generator, dora=False)
    config = transformer.config
    x, times = torch.randn(2, config.latent_channels, 4, 4), torch.rand(2)
    text = torch.randn(2, 3, config.text_width)
    import copy

    average = copy.deepcopy(adapter).requires_grad_(False)
    assert average.transformer is transformer
    plain = untouched(x, times, text).detach()
    torch.testing.assert_close(average(x, times, text), plain)
    optimizer = torch.optim.SGD(adapter.parameters(), 10.0)
    adapter(x, times, text).square().mean().backward()
    optimizer.step()
    assert not torch.allclose(adapter(x, times, text), plain)
    # The copy draws with its own numbers, through the same transformer.
    torch.testing.assert_close(average(x, times, text), plain)
    base = {name.replace(".base.", "."): each for name, each in transformer.named_parameters()}
    for name, each in untouched.named_parameters():
        assert torch.equal(base[name], each) and base[name].grad is None


@pytest.mark.parametrize("method", ["full", "lora", "dora"])
def test_the_velocities_of_a_prior_are_those_of_the_model_before_it_learned(
    method: str, tiny_model: Path, prepared: Path, tmp_path: Path
) -> None:
    run = recipe(
        *(tiny_model, prepared, f"method={method}", 'prior.prompts=["a cat"]', "prior.count=3"),
        *("prior.target=velocity", "train.log_every=1"),
    )
    train_finetune(run, tmp_path / "run", resume=False, device=CPU)
    log = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    apart = [json.loads(line)["prior"] for line in log]
    # At the first step nothing was learned; then the model moves away.
    assert apart[0] == 0 and all(each > 0 for each in apart[1:])


def test_an_interrupted_lora_goes_on_as_if_it_had_not_been(
    tiny_model: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recipe(
        *(tiny_model, prepared, 'prior.prompts=["a cat", "a dog"]', "prior.count=5", "prior.weight=0.5"),
        "prior.target=velocity",
    )
    train_finetune(run, tmp_path / "whole", resume=False, device=CPU)
    losses = FinetuneTask.losses_of_share

    def stopped(task: FinetuneTask, step: int, share: object) -> object:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(task, step, share)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTask, "losses_of_share", stopped)
        train_finetune(run, tmp_path / "parts", resume=False, device=CPU)
    before = load_newest(tmp_path / "parts")
    assert before is not None and before.step == 2
    train_finetune(run, tmp_path / "parts", resume=True, device=CPU)
    one, two = load_newest(tmp_path / "whole"), load_newest(tmp_path / "parts")
    assert one is not None and two is not None and one.step == two.step == 4
    for stem, tensors in one.tensors.items():
        for name in tensors:
            assert torch.equal(tensors[name], two.tensors[stem][name]), f"{stem} {name}"
    changed = recipe(
        tiny_model, prepared, 'prior.prompts=["a cat"]', "prior.count=5", "prior.weight=0.5", "train.steps=5"
    )
    with pytest.raises(OutputError, match="computed from other settings"):
        train_finetune(changed, tmp_path / "parts", resume=True, device=CPU)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ('adapter.targets=["to_x"]', "no linear layer is called to_x"),
        ("train.parallel=fsdp", 'train.parallel="fsdp" shards all weights'),
        ("method=lola", "method='lola'"),
        ("adapter.rank=0", "adapter.rank=0"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    override: str, complaint: str, tiny_model: Path, prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        train_finetune(recipe(tiny_model, prepared, override), tmp_path / "run", resume=False, device=CPU)
    assert complaint in str(caught.value)
