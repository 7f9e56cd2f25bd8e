"""Train, fine-tune, run and serve linear-attention diffusion transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lineardit.autoencoder.model import Autoencoder as Autoencoder
    from lineardit.errors import LineardiTError as LineardiTError
    from lineardit.kernels.linear_attention import linear_attention as linear_attention
    from lineardit.kernels.linear_attention import linear_attention_state as linear_attention_state
    from lineardit.pipeline import Pipeline as Pipeline
    from lineardit.transformer.dit import LinearDiT as LinearDiT
    from lineardit.transformer.dit import SoftmaxDiT as SoftmaxDiT
    from lineardit.transformer.model import Transformer as Transformer

_HOMES = {
    "Autoencoder": "lineardit.autoencoder.model",
    "LineardiTError": "lineardit.errors",
    "LinearDiT": "lineardit.transformer.dit",
    "Pipeline": "lineardit.pipeline",
    "SoftmaxDiT": "lineardit.transformer.dit",
    "Transformer": "lineardit.transformer.model",
    "linear_attention": "lineardit.kernels.linear_attention",
    "linear_attention_state": "lineardit.kernels.linear_attention",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `lineardit --help` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module lineardit has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
