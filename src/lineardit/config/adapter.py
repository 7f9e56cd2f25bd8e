"""What a LoRA adds to, and how a fine-tune is kept from forgetting what the model draws already."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from lineardit.config.models import Config


class AdapterConfig(Config):
    """A LoRA (arXiv:2106.09685) or DoRA (arXiv:2402.09353): for method lora and dora."""

    rank: int = Field(16, gt=0)
    """Numbers that pass each of the layers' additions; the file's size grows with it."""
    alpha: float | None = Field(None, gt=0)
    """The addition is taken times alpha / rank; the rank, so times 1, unless given."""
    targets: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Layers that are added to, by the ends of their names in diffusers: these are the attentions'. Others
    are conv_inverted and conv_point (feed-forward), linear_1, linear_2, linear and proj_out."""

    @property
    def scaling(self) -> float:
        """Alpha, the rank where none is given."""
        return float(self.rank) if self.alpha is None else self.alpha


class PriorConfig(Config):
    """Prior preservation (DreamBooth, arXiv:2208.12242): pictures that the model drew before it learned."""

    prompts: tuple[str, ...] = ()
    """What is drawn, such as the kind of thing that the new one is of: "a dog" for your dog."""
    prompts_file: Path | None = None
    """A text file with a prompt on each line, beside or instead of `prompts`."""
    target: Literal["pictures", "velocity"] = "pictures"
    """What stays: that these pictures are likely, or the very velocity that the model had for them before
    (learning without forgetting, arXiv:1606.09282). The latter keeps more, and calls the model once more;
    where all weights learn it takes a second copy of them."""
    prompt_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of its samples that are shown no prompt: what guidance leads away from stays, too."""
    count: int = Field(100, gt=0)
    """Pictures that are drawn once, before the first step, of all prompts together; at least one of each."""
    weight: float = Field(1.0, gt=0)
    """Of their loss, beside that of the pictures to be learned; each step sees as many of both."""
    guidance_scale: float | None = Field(None, ge=0)
    """They are drawn with; the model's own unless given."""

    @model_validator(mode="after")
    def there_are_prompts(self) -> Self:
        if not self.prompts and self.prompts_file is None:
            raise ValueError("a prior needs prompts, or a prompts_file with one on each line.")
        return self
