"""Options of the emoji scenes that the bundled model is trained on and measured with."""

from typing import Self

from pydantic import Field, model_validator

from lineardit.config.models import Config


class SceneConfig(Config):
    """Which pictures `EmojiScenes` composes."""

    size: int = Field(128, ge=16)
    """Pixels per side of the canvas on which scenes are laid out; they can be drawn at any other size."""
    objects: int = Field(104, ge=4)
    """How many objects of the curated list take part, in its order: the most common ones come first."""
    max_objects: int = Field(4, ge=1, le=4)
    """Most objects in one scene."""
    placement_step: int = Field(16, ge=1)
    """Pixels between the allowed centres of objects; 1 places them anywhere."""
    held_out_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of the object-background and object-object pairs that never occur in training."""
    small: float = Field(0.25, gt=0)
    """Side of a small object over the side of the canvas."""
    medium: float = Field(0.375, gt=0)
    """Side of a medium object over the side of the canvas."""
    large: float = Field(0.5, gt=0, le=0.6)
    """Side of a large object over the side of the canvas."""

    @model_validator(mode="after")
    def sizes_grow_and_steps_reach_the_centre(self) -> Self:
        if not self.small < self.medium < self.large:
            raise ValueError(
                f"small={self.small}, medium={self.medium}, large={self.large}: each must be below the next."
            )
        if self.small > 0.28:
            raise ValueError(f"small={self.small}: three must fit side by side with gaps. Use 0.28 or less.")
        if self.medium > 0.44:
            raise ValueError(f"medium={self.medium}: two must fit side by side with a gap. Use 0.44 or less.")
        if self.size % (2 * self.placement_step) or self.size < 8 * self.placement_step:
            multiple = self.size % 16 == 0
            remedy = f"1 or {self.size // 8}" if multiple else "1, or a size that is a multiple of 16"
            raise ValueError(
                f"placement_step={self.placement_step} must divide half of size={self.size} and be at most "
                f"an eighth of it. Use {remedy}."
            )
        return self

    def side(self, size_word: str) -> float:
        """Side of an object called small, medium or large, over the side of the canvas."""
        return {"small": self.small, "medium": self.medium, "large": self.large}[size_word]
