"""The networks that a pipeline draws with, by the configuration that they are built from."""

from lineardit.config.article import ArticleConfig
from lineardit.config.models import TransformerConfig
from lineardit.transformer.article import ArticleSana
from lineardit.transformer.model import Transformer

DenoiserConfig = TransformerConfig | ArticleConfig
Denoiser = Transformer | ArticleSana
"""Each takes latents, times and prompts, as they are or as its `read` made of them."""


def denoiser_of(config: DenoiserConfig) -> Denoiser:
    """The network of a configuration, with fresh weights."""
    return ArticleSana(config) if isinstance(config, ArticleConfig) else Transformer(config)
