"""Recipes of class-conditional transformers: what is drawn is a class by its name or number, not a text."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lineardit.config.dit import DiTConfig, LinearDiTConfig, SoftmaxDiTConfig, dit_preset
from lineardit.config.models import Config, FeatureMap, Position
from lineardit.config.runs import LoopConfig
from lineardit.config.scenes import SceneConfig
from lineardit.errors import ConfigError


class ClassNetwork(Config):
    """Shape of a LinearDiT or of the softmax DiT.

    The width of its tokens and the number of its classes follow from the autoencoder and the data.
    """

    attention: Literal["linear", "softmax"] = "linear"
    """linear: LinearDiT. softmax: DiT (arXiv:2212.09748)."""
    hidden_size: int = Field(512, gt=0)
    """Channels of a token inside the network."""
    num_layers: int = Field(12, gt=0)
    """Number of blocks."""
    num_heads: int = Field(8, gt=0)
    """Attention heads; `hidden_size` must be a multiple."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of the MLP over `hidden_size`."""
    num_steps: int = Field(1000, gt=0)
    """Timesteps of the diffusion."""
    patch_size: int = Field(2, gt=0)
    """Latents per token and side."""
    position: Position = "sincos"
    """Position signal: sines and cosines of rows and columns, or none."""
    feature_map: FeatureMap = "elu1"
    """Of linear attention: ELU + 1 as the documents have it, or ReLU."""

    @model_validator(mode="after")
    def shape_holds(self) -> Self:
        try:
            self.shape(1, 1)
        except ConfigError as error:
            raise ValueError(str(error).partition(": ")[2]) from None  # without the name of that class
        return self

    @classmethod
    def preset(cls, name: str) -> "ClassNetwork":
        """The shape of a preset, which itself says how many channels and classes there are.

        Raises:
            ConfigError: there is none of that name.
        """
        shape = dit_preset(name)
        kept = {key: value for key, value in shape.model_dump().items() if key in cls.model_fields}
        return cls(attention="linear" if isinstance(shape, LinearDiTConfig) else "softmax", **kept)

    def shape(self, latent_channels: int, classes: int) -> DiTConfig:
        """The whole shape for latents of so many channels, and so many classes."""
        options: dict[str, Any] = self.model_dump(exclude={"attention", "feature_map"})
        options |= {"input_dim": latent_channels * self.patch_size**2, "num_classes": classes}
        if self.attention == "softmax":
            return SoftmaxDiTConfig(**options)
        return LinearDiTConfig(**options, feature_map=self.feature_map)


class ClassSample(Config):
    """The pictures drawn during training, always from the same noise."""

    classes: tuple[str, ...] = ()
    """Names or numbers of the classes that are drawn; the first eight unless given."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Each class is drawn once from the noise of each of these."""
    num_inference_steps: int = Field(50, gt=0)
    """Steps of DDIM per picture; guidance calls the network twice in each."""
    guidance_scale: float = Field(4.0, ge=0)
    """How far away from the picture of no class; 1 draws without guidance."""


class ClassRun(Config):
    """Train a class-conditional transformer.

    It learns from pictures that `lineardit prepare --classes` has encoded, or from drawn scenes of one
    object.
    """

    kind: Literal["class-conditional"] = "class-conditional"
    """Tells recipes apart."""
    data: Path | None = None
    """Folder that `lineardit prepare --classes` wrote; drawn scenes unless given."""
    autoencoder: Path = Path("emoji")
    """Folder of the autoencoder that the pictures were prepared with; emoji is the bundled one."""
    model: ClassNetwork = ClassNetwork()
    start: Path | None = None
    """Folder of a class-conditional model whose transformer this run starts from; without it, from random
    weights."""
    scenes: SceneConfig = SceneConfig(max_objects=1)
    """Of runs without `data`: the class of a scene is its object."""
    pool: int = Field(16384, gt=0)
    """Of runs without `data`: scenes that are drawn and encoded once, then used again and again."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of samples that are shown the null class, so that guidance has something to lead away from."""
    sample: ClassSample = ClassSample()
    train: LoopConfig

    @model_validator(mode="after")
    def scenes_have_one_class(self) -> Self:
        if self.data is None and self.scenes.max_objects > 1:
            raise ValueError(
                f"scenes of {self.scenes.max_objects} objects have no one class. Use scenes.max_objects=1."
            )
        return self
