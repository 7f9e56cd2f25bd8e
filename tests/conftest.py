"""What holds in every test: one thread, no network, shapes and types of the package checked."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of this process and of those that tests start
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its kernels then run on the CPU

PACKAGE = Path(__file__).parents[1] / "src" / "lineardit"
# No tensors there, and pydantic's methods return `Self`, which beartype refuses outside a decorated class.
# Triton reads its kernels' source, in which nothing may be wrapped.
WITHOUT_TENSORS = {"errors", "config", "cli", "kernels"}
UNITS = {path.stem for path in PACKAGE.glob("[a-z]*")} - WITHOUT_TENSORS
KERNELS = {path.stem for path in (PACKAGE / "kernels").glob("[a-z]*.py") if "triton" not in path.stem}
UNITS |= {f"kernels.{name}" for name in KERNELS}

# Before anything of the package is imported: annotated shapes are then enforced in every call a test makes.
install_import_hook([f"lineardit.{unit}" for unit in sorted(UNITS)], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Take back what a command chose for its process, threads and passes: the next test shares it."""
    yield
    torch.set_num_threads(1)
    if native := sys.modules.get("lineardit.kernels.native"):
        native._in_use, native._torch_only = None, False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none, saying so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole model with random weights: 8 pixels per token, 24 pixels per side, 11 words."""
    from lineardit.autoencoder.model import Autoencoder
    from lineardit.config.models import AutoencoderConfig, SceneTextConfig, TransformerConfig
    from lineardit.interop.native import Component, save_model
    from lineardit.interop.text import text_component
    from lineardit.text.scene_encoder import SceneTextEncoder
    from lineardit.text.word_pieces import build_tokenizer
    from lineardit.transformer.model import Transformer

    stages = [{"width": 8, "depth": 0}, {"width": 8, "depth": 1}, {"width": 16, "depth": 1}]
    autoencoder_config = AutoencoderConfig(latent_channels=4, encoder=stages, decoder=stages)
    transformer_config = TransformerConfig(
        latent_channels=4, patch_size=2, depth=1, width=16, head_dim=8, cross_head_dim=8, text_width=12
    )
    text_config = SceneTextConfig(vocabulary=256, width=12, depth=1, head_dim=6, max_tokens=11)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder, transformer = Autoencoder(autoencoder_config), Transformer(transformer_config)
        tokenizer = build_tokenizer(["a red apple left of a cat", "two dogs", "a house"], 256)
        text, files = text_component(SceneTextEncoder(text_config, tokenizer))
        # Large enough that prompt, guidance and time all show in the picture.
        for tensors in (transformer.state_dict(), text.tensors):
            for tensor in tensors.values():
                tensor.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(
        folder,
        {
            "transformer": Component("Transformer", transformer_config, transformer.state_dict()),
            "autoencoder": Component("Autoencoder", autoencoder_config, autoencoder.state_dict()),
            "text_encoder": text,
        },
        about={"sampling": {"guidance_scale": 3.0, "num_inference_steps": 3, "size": 24}},
        extra_files=files,
    )
    return folder
