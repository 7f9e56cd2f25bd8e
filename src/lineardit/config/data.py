"""How pictures become training data: which sizes they are brought to, and which are left out."""

from typing import Self

from pydantic import Field, model_validator

from lineardit.config.models import Config

MOST_PIXELS = 80_000_000
"""Pillow itself warns of, and then refuses, pictures that are larger than about this."""


class BucketConfig(Config):
    """The sizes that pictures are brought to. Each has at most `size`^2 pixels."""

    sizes: tuple[int, ...] = Field((1024,), min_length=1)
    """Pixels per side of the square ones; a picture goes to the largest that it fills."""
    max_aspect: float = Field(2.0, ge=1, le=8)
    """Longest side over shortest of the most oblong ones; 1 makes every picture square."""
    step: int = Field(32, gt=0)
    """Sides are multiples of this: the pixels per token, or a multiple of them."""

    @model_validator(mode="after")
    def sizes_are_whole_steps(self) -> Self:
        for size in self.sizes:
            if size < self.step or size % self.step:
                below = size - size % self.step
                choices = f"{below} or {below + self.step}" if below else f"{self.step}"
                raise ValueError(f"size={size} is no multiple of step={self.step}. Use {choices}.")
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes={self.sizes}: each is given once.")
        return self


class CheckConfig(Config):
    """Which pictures are left out."""

    max_enlargement: float = Field(1.5, ge=1)
    """A picture that would have to be enlarged more than this to fill its bucket is too small."""
    max_pixels: int = Field(MOST_PIXELS, gt=0, le=MOST_PIXELS)
    """A picture whose header announces more is never decoded: it could be a decompression bomb."""
    caption: str | None = None
    """What a picture without a caption is called; without it, such pictures are left out."""
    classes: bool = False
    """Whether pictures without a class are left out. Those with one need no caption: it is that, then."""

    @model_validator(mode="after")
    def caption_says_something(self) -> Self:
        if self.caption is not None and not self.caption.strip():
            raise ValueError('caption is empty. Say what is to be seen, as in "a photograph".')
        return self
