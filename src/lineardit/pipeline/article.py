"""What differs where the article's network draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lineardit.diffusion.paths import Times, Velocity
from lineardit.pipeline.networks import PromptedNetwork
from lineardit.pipeline.settings import Settings
from lineardit.text.embedding import TextEmbedding
from lineardit.transformer.article import ArticleSana
from lineardit.transformer.generation import PromptReading, StepCache


@dataclass(frozen=True)
class ArticleNetwork(PromptedNetwork):
    """The article's SANA, which reads prompts as SANA does and sees whole times."""

    transformer: ArticleSana
    seen: Callable[[Times], Times]
    """Times as the network was shown them in training."""

    def _velocity(
        self, jobs: Sequence[Settings], text: TextEmbedding, read: PromptReading, control: Tensor | None
    ) -> Velocity:
        """What the network predicts."""
        dtype = self.transformer.to_tokens.weight.dtype
        cache = StepCache(jobs[0].step_cache) if jobs[0].step_cache else None

        def predicted(latents: Tensor, times: Tensor) -> Tensor:
            out: Tensor = self.transformer(latents.to(dtype), self.seen(times), read, cache=cache)
            return out

        return predicted
