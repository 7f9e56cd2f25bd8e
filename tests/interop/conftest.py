"""A published pipeline in small: every part as diffusers and transformers write it, with random weights."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lineardit.config.models import AutoencoderConfig
from lineardit.config.presets import differing


def tiny_tokenizer() -> Any:
    """Whole words, as many as the instruction of SANA and a few prompts have."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from lineardit.text.prompt import sana_instruction

    splitter = pre_tokenizers.Whitespace()
    words = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>"])
    for text in (sana_instruction(), "a red apple left of a cat, two dogs"):
        words |= dict.fromkeys(word for word, _ in splitter.pre_tokenize_str(text))
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def tiny_gemma(width: int = 28) -> Any:
    import transformers

    return transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=300,
            hidden_size=width,
            intermediate_size=44,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=14,
            query_pre_attn_scalar=14,
            sliding_window=512,
        )
    ).eval()


def tiny_pipeline(**transformer_options: Any) -> Any:
    """8 pixels per latent, 5 latents per side, 3 latent channels, text of width 28."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = ["ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"]
        sides = ("encoder", "decoder")
        vae = diffusers.AutoencoderDC(
            latent_channels=3,
            attention_head_dim=6,
            **{f"{side}_block_types": blocks for side in sides},
            **{f"{side}_block_out_channels": [6, 12, 12, 24] for side in sides},
            **{f"{side}_layers_per_block": [1, 1, 1, 1] for side in sides},
            **{f"{side}_qkv_multiscales": [[], [], [5], [5]] for side in sides},
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        )
        options = {
            "in_channels": 3,
            "out_channels": 3,
            "num_attention_heads": 5,
            "attention_head_dim": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 10,
            "cross_attention_dim": 20,
            "num_layers": 2,
            "caption_channels": 28,
            "sample_size": 5,
        }
        transformer = diffusers.SanaTransformer2DModel(**options | transformer_options)
        for network in (vae, transformer):
            for tensor in network.state_dict().values():
                if tensor.dim() > 1:
                    tensor.normal_(std=1 / tensor[0].numel() ** 0.5)
        sprint = transformer_options.get("guidance_embeds")
        kind = diffusers.SanaSprintPipeline if sprint else diffusers.SanaPipeline
        scheduler = (
            diffusers.SCMScheduler()
            if sprint
            else diffusers.DPMSolverMultistepScheduler(
                flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
            )
        )
        return kind(
            tokenizer=tiny_tokenizer(),
            text_encoder=tiny_gemma(),
            vae=vae.eval(),
            transformer=transformer.eval(),
            scheduler=scheduler,
        )


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that diffusers makes of such a pipeline. Nobody may write into it."""
    folder = tmp_path_factory.mktemp("published") / "Sana_tiny_diffusers"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def deeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with three blocks instead of two."""
    folder = tmp_path_factory.mktemp("published") / "Sana_deeper_diffusers"
    tiny_pipeline(num_layers=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sprint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a distilled pipeline: with qk norm and an embedded guidance scale."""
    folder = tmp_path_factory.mktemp("published") / "Sana_Sprint_tiny_diffusers"
    tiny_pipeline(guidance_embeds=True, qk_norm="rms_norm_across_heads").save_pretrained(folder)
    return folder


class Counting(TorchDispatchMode):
    """Counts the bytes of all tensors that were made and still live, beside a network's own."""

    def __init__(self, network: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.live = self.peak = 0
        own = {} if network is None else network.state_dict()
        self.seen = {tensor.untyped_storage()._cdata for tensor in own.values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


@pytest.fixture
def counting() -> type[Counting]:
    """What counts memory the same way on every machine."""
    return Counting


@pytest.fixture
def narrowed() -> Callable[[AutoencoderConfig], AutoencoderConfig]:
    """Makes a published autoencoder small: a sixteenth of the channels, at most two blocks a stage."""

    def change(config: AutoencoderConfig) -> AutoencoderConfig:
        def stages(side: str) -> list[dict[str, object]]:
            return [
                stage.model_dump() | {"width": stage.width // 16, "depth": min(stage.depth, 2)}
                for stage in getattr(config, side)
            ]

        return differing(
            config,
            encoder=stages("encoder"),
            decoder=stages("decoder"),
            attention_head_dim=8,
            latent_channels=config.latent_channels // 8,
        )

    return change
