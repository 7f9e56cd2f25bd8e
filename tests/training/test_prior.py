"""What the model drew before is drawn once, in any number of parts, and its loss adds up over shares."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lineardit.config.adapter import PriorConfig
from lineardit.diffusion.objective import FlowMatching
from lineardit.diffusion.times import LogitNormal
from lineardit.errors import ConfigError
from lineardit.text.embedding import TextEmbedding
from lineardit.training import prior as module
from lineardit.training.prior import Prior, draw_prior, prompts_of
from lineardit.training.shares import Share

OBJECTIVE = FlowMatching(LogitNormal(0.0, 1.0), 1.0)


class Words:
    """As many vectors as a prompt has letters, all of its length; none are one vector of zeros."""

    width = 2

    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        longest = max(map(len, prompts))
        mask = torch.arange(longest) < torch.tensor([[len(prompt)] for prompt in prompts])
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return TextEmbedding(lengths[:, None, None].expand(-1, longest, 2).contiguous(), mask)

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        return TextEmbedding(torch.zeros(len(prompts), 1, 2), torch.ones(len(prompts), 1, dtype=torch.bool))


def network(x: Tensor, times: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """Away from the prompt's length, at every place: from noise z one step of Euler leads to z - length."""
    kept = text if mask is None else text * mask[..., None]
    counts = text.shape[1] if mask is None else mask.sum(1)
    mean = kept[..., 0].sum(1) / counts
    return mean[:, None, None, None].expand_as(x)


def drawn(folder: Path, **changes: object) -> Prior:
    config = PriorConfig(prompts=("cat", "a dog"), count=7, guidance_scale=2.0, prompt_dropout=0.0)
    return draw_prior(
        config.model_copy(update=changes),
        folder,
        network,
        Words(),
        OBJECTIVE,
        shape=(3, 2, 5),
        num_inference_steps=4,
        guidance_scale=1.0,
        seed=3,
        device=torch.device("cpu"),
        origin={"base": "network"},
    )


def test_each_prompt_is_drawn_in_turn_with_guidance(tmp_path: Path) -> None:
    latents = drawn(tmp_path).latents
    assert latents.shape == (7, 3, 2, 5)
    # The path goes from noise by twice the prompt's length (guidance 2 over no words, of length 0).
    shifts = latents.mean((1, 2, 3))
    expected = torch.tensor([-6.0, -10.0] * 4)[:7]
    assert ((shifts - expected).abs() < 1).all()
    assert len({round(float(each), 5) for each in latents.flatten()}) == latents.numel()


def test_pictures_do_not_depend_on_how_many_are_drawn_at_once_nor_on_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawn(tmp_path / "whole").latents
    monkeypatch.setattr(module, "SHARD", 3)
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", 1)
    torch.testing.assert_close(drawn(tmp_path / "parts").latents, whole)
    # What is there is not drawn again.
    monkeypatch.setattr(module, "seeded_noise", None)
    torch.testing.assert_close(drawn(tmp_path / "parts").latents, whole)


def test_the_loss_is_that_of_the_drawn_pictures_and_shares_add_up(tmp_path: Path) -> None:
    prior = drawn(tmp_path)
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(x: Tensor, times: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        seen.append((text, x))
        return network(x, times, text, mask)

    whole = prior.loss(watched, 4, 6, Share())
    halves = [prior.loss(watched, 4, 6, Share(index, 2)) for index in range(2)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)
    torch.testing.assert_close(torch.cat([seen[1][1], seen[2][1]]), seen[0][1])
    assert not torch.allclose(prior.loss(network, 5, 6, Share()), whole)
    # Flow matching wants noise - latents: a network that knows both has no loss.
    text, x = seen[0]
    assert text.shape == (6, 5, 2) and set(text[..., 0].amax(1).tolist()) == {3.0, 5.0}


def test_with_the_network_as_it_was_the_loss_is_the_distance_to_its_velocity(tmp_path: Path) -> None:
    prior = drawn(tmp_path)

    def moved(x: Tensor, times: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        return network(x, times, text, mask) + 3 * x

    assert prior.loss(network, 4, 6, Share(), network) == 0
    seen: list[Tensor] = []

    def watched(x: Tensor, times: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(x)
        return network(x, times, text, mask)

    found = prior.loss(moved, 4, 6, Share(), watched)
    torch.testing.assert_close(found, (3 * seen[0]).square().mean())


def test_the_given_share_of_samples_is_shown_no_prompt(tmp_path: Path) -> None:
    prior = drawn(tmp_path, prompt_dropout=0.25)
    lengths: list[float] = []

    def watched(x: Tensor, times: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        lengths.extend(text[..., 0].amax(1).tolist())
        return x

    for step in range(50):
        prior.loss(watched, step, 8, Share())
    assert set(lengths) == {0.0, 3.0, 5.0}
    assert 60 < lengths.count(0.0) < 140


def test_prompts_may_stand_in_a_file_one_on_each_line(tmp_path: Path) -> None:
    place = tmp_path / "prompts.txt"
    place.write_text("a dog\n\n  zwei Katzen \n", "utf-8")
    assert prompts_of(PriorConfig(prompts=("a cat",), prompts_file=place)) == [
        "a cat",
        "a dog",
        "zwei Katzen",
    ]
    place.write_text("\n \n", "utf-8")
    with pytest.raises(ConfigError, match="has no prompt"):
        prompts_of(PriorConfig(prompts_file=place))
    place.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        prompts_of(PriorConfig(prompts_file=place))
    with pytest.raises(ConfigError, match="No such file"):
        prompts_of(PriorConfig(prompts_file=tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="a prior needs prompts"):
        PriorConfig()


def test_more_prompts_than_pictures_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "prompts.txt"
    place.write_text("a dog\na horse\na cow\n", "utf-8")
    config = PriorConfig(prompts=("a cat",), prompts_file=place, count=3)
    with pytest.raises(ConfigError, match="prior.count=3 .* 4 prompts, .* Use prior.count=4 or more"):
        prompts_of(config)
    assert len(prompts_of(config.model_copy(update={"count": 4}))) == 4


def test_prompts_are_encoded_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []
    encode = Words.encode

    def watched(self: Words, prompts: Sequence[str]) -> TextEmbedding:
        together.append(len(prompts))
        return encode(self, prompts)

    monkeypatch.setattr(Words, "encode", watched)
    prompts = tuple("a" * length for length in range(1, 131))
    found = drawn(tmp_path, prompts=prompts, count=130)
    assert together == [64, 64, 2]
    assert [len(words) for words in found.words] == list(range(1, 131))
