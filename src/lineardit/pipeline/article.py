"""What differs where the article's network draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lineardit.diffusion.paths import Times, Velocity
from lineardit.pipeline.networks import Branches
from lineardit.pipeline.settings import Settings
from lineardit.text.embedding import TextEmbedding
from lineardit.transformer.article import ArticleSana
from lineardit.transformer.generation import PromptReading, StepCache


@dataclass(frozen=True)
class ArticleNetwork:
    """The article's SANA, which reads prompts as SANA does and sees whole times."""

    transformer: ArticleSana
    seen: Callable[[Times], Times]
    """Times as the network was shown them in training."""

    def is_guided(self, jobs: Sequence[Settings]) -> bool:
        """Where a scale is not 1."""
        return any(job.guidance_scale != 1 for job in jobs)

    def branches(
        self, jobs: Sequence[Settings], conditions: TextEmbedding, control: Tensor | None
    ) -> Branches:
        """Both read the prompts once for all steps, and each has its own cache."""
        read = self.transformer.read(conditions.embeddings, conditions.mask)
        wanted = len(jobs)  # the negative prompts come first
        if not self.is_guided(jobs):
            return Branches(self._predicted(jobs, read), None)
        return Branches(self._predicted(jobs, read.rows(wanted, 2 * wanted)), self._predicted(jobs, read))

    def _predicted(self, jobs: Sequence[Settings], read: PromptReading) -> Velocity:
        dtype, cache = self.transformer.to_tokens.weight.dtype, StepCache(jobs[0].step_cache)

        def predicted(latents: Tensor, times: Tensor) -> Tensor:
            out: Tensor = self.transformer(latents.to(dtype), self.seen(times), read, cache=cache)
            return out

        return predicted
