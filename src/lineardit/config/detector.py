"""The detector that reads scenes, and the recipe that trains it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lineardit.config.models import Config
from lineardit.config.runs import LoopConfig
from lineardit.config.scenes import SceneConfig


class DetectorShape(Config):
    """Size of the detector's network: 1/4, 1/8 and 1/16 of the side of the picture."""

    size: int = Field(128, gt=0)
    """Pixels per side of what it reads; other pictures are resized to it. A multiple of 16."""
    widths: tuple[int, int, int] = (48, 96, 192)
    """Channels at 1/4, 1/8 and 1/16 of the side."""
    depths: tuple[int, int, int] = (1, 1, 2)
    """Blocks at 1/4, 1/8 and 1/16 of the side."""

    @model_validator(mode="after")
    def size_halves_four_times(self) -> Self:
        if self.size % 16:
            near = max(16, self.size - self.size % 16)
            raise ValueError(f"size={self.size} is no multiple of 16. Use {near} or {near + 16}.")
        return self

    @property
    def cells(self) -> int:
        """Cells per side of the heat maps."""
        return self.size // 8


class DetectorConfig(DetectorShape):
    """A detector with the names of what it tells apart."""

    objects: tuple[str, ...] = Field(min_length=1)
    """Names of its object classes, in the order of its channels."""
    backgrounds: tuple[str, ...] = Field(min_length=1)
    """Names of its background classes, in the order of its channels."""


class DistortionConfig(Config):
    """How far training pictures are from clean drawings: the largest strengths, pixels in [-1, 1]."""

    share: float = Field(0.4, ge=0, le=1)
    """Share of batches with other colours, with blur, with compression, with noise; each drawn by itself."""
    colour: float = Field(0.08, ge=0)
    """Shift of a picture's red, green and blue."""
    contrast: float = Field(0.15, ge=0)
    """Share by which the distance from grey grows or shrinks."""
    blur: float = Field(1.2, ge=0)
    """Standard deviation of a Gaussian, pixels of a picture of 128."""
    compression: float = Field(0.5, ge=0)
    """Step to which the highest cosine coefficients of blocks of 8x8 pixels are rounded, as JPEG does."""
    noise: float = Field(0.1, ge=0)
    """Standard deviation of noise."""


class DetectorRun(Config):
    """Train the detector on drawn scenes."""

    kind: Literal["detector"] = "detector"
    """Tells recipes apart."""
    model: DetectorShape = DetectorShape()
    scenes: SceneConfig = SceneConfig()
    placement_steps: tuple[int, ...] = (16, 8, 4)
    """Lattices on which objects stand, one per scene: finer ones show what was placed a little off."""
    scales: tuple[float, ...] = (0.9, 1.0, 1.1)
    """Factors on the sizes of objects, one per scene."""
    distortion: DistortionConfig = DistortionConfig()
    train: LoopConfig
