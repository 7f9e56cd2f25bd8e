"""Recipes of training runs: what is trained, on which scenes, how fast and how long."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from lineardit.config.article import ArticleAutoencoderConfig, ArticleConfig
from lineardit.config.models import (
    AutoencoderConfig,
    Config,
    SceneTextConfig,
    TransformerConfig,
)
from lineardit.config.reconstruction import (
    AdversarialConfig,
    Learns,
    PicturesConfig,
    ReconstructionConfig,
)
from lineardit.config.scenes import SceneConfig


class OptimizerConfig(Config):
    """How weights follow their gradients."""

    optimizer: Literal["adamw", "adamw8bit", "came", "muon"] = "adamw"
    """adamw8bit keeps its moments in a quarter of the memory (needs bitsandbytes), came the second
    one in two vectors per matrix (arXiv:2307.02047); under muon the matrices of the blocks follow Muon,
    everything else AdamW."""
    learning_rate: float = Field(3e-4, gt=0)
    """Rate after the warm-up, before the decay."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Shares of the past in the running means of the gradient and of its square."""
    confidence_beta: float = Field(0.9999, ge=0, lt=1)
    """Of came: share of the past in the running mean of how far its steps were from their mean."""
    weight_decay: float = Field(0.01, ge=0)
    """Share of a matrix removed per step at rate 1; norms, biases and tables do not decay."""
    clip: float = Field(1.0, gt=0)
    """Longest gradient over all weights; longer ones are scaled down to it."""
    warmup_steps: int = Field(500, ge=0)
    """Steps in which the rate rises from 0; a shorter run, made to try something, ends within them."""
    decay: Literal["cosine", "constant", "wsd"] = "cosine"
    """From the warm-up to the last step: a half cosine, no change, or no change and then a straight fall."""
    decay_share: float = Field(0.2, gt=0, le=1)
    """Share of the steps after the warm-up in which `wsd` falls."""
    final_share: float = Field(0.05, ge=0, le=1)
    """Rate at the last step over the full rate."""

    @model_validator(mode="after")
    def betas_are_shares(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: each is at least 0 and below 1.")
        return self


class LoopConfig(OptimizerConfig):
    """How long a run takes, and what it writes on the way."""

    steps: int = Field(gt=0)
    """Steps of the whole run, those before an interruption included."""
    batch_size: int = Field(gt=0)
    """Samples per step, of all processes together."""
    accumulate: int = Field(1, gt=0)
    """Parts of a batch that are computed one after the other: less memory, the same gradient."""
    seed: int = Field(0, ge=0)
    """All randomness of step k is a function of this and k."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Of matrix products; weights, sums and the optimizer stay in float32. fp16 scales the loss so that small
    gradients survive."""
    checkpoint_activations: bool = False
    """Keep only what goes into each block and compute the rest again on the way back: far less memory, about
    a third more time. Also called gradient checkpointing."""
    compile: bool = False
    """Fuse the forward and backward pass with torch.compile: minutes to start, then about twice as fast."""
    ema_half_life: float = Field(1000, gt=0)
    """Steps after which a weight's share in the running average has halved."""
    ema_width: float | None = Field(None, gt=0, lt=0.28)
    """Instead of a half-life: deviation of the averaged steps over all steps done, so that the average grows
    with the run (power-function EMA, arXiv:2312.02696); 0.05 and 0.1 are usual."""
    log_every: int = Field(50, gt=0)
    """Steps between two lines of the log."""
    sample_every: int = Field(1000, gt=0)
    """Steps between two sample pictures."""
    checkpoint_every: int = Field(1000, gt=0)
    """Most steps between two checkpoints."""
    checkpoint_minutes: float = Field(10, gt=0)
    """Most minutes between two checkpoints."""
    keep: int = Field(2, gt=0)
    """Checkpoints that stay; older ones are removed."""
    keep_best: int = Field(0, ge=0)
    """Checkpoints that stay beside these: those of the lowest validation loss, or, in a run without one, of
    the lowest mean loss since the checkpoint before."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Of several processes each holds the whole state (ddp), or some rows of every tensor (fsdp)."""
    shard_within: int | None = Field(None, gt=0)
    """Of fsdp: processes that hold one copy together, such as the GPUs of one machine; all unless given."""
    timeout_minutes: float = Field(10.0, gt=0)
    """How long a process waits for the others before it ends the job."""


class TimeConfig(Config):
    """Where between image (0) and noise (1) training looks: times of a distribution, then shifted."""

    distribution: Literal["logit_normal", "mode", "uniform"] = "logit_normal"
    """logit_normal: t = sigmoid(mean + std n); mode: t = 1 - u - mode_scale (cos(pi u / 2)^2 - 1 + u), u
    uniform (arXiv:2403.03206, section 3.1)."""
    mean: float = 0.0
    """Of the normal distribution inside the sigmoid; above 0 looks at noisier times."""
    std: float = Field(1.0, gt=0)
    """Of the normal distribution inside the sigmoid; larger looks more at the ends."""
    mode_scale: float = Field(1.29, ge=-1, le=1.75)
    """Of mode: above 0 looks at the middle, below 0 at the ends."""
    shift: float = Field(1.0, gt=0)
    """t' = shift t / (1 + (shift - 1) t); above 1 looks at noisier times."""
    shift_tokens: int | None = Field(None, gt=0)
    """Tokens of the pictures that `shift` is right for; for others it is taken times the square root of the
    ratio of the numbers of tokens (section 5.3.2). The same shift at every size unless given."""
    weighting: Literal["none", "cosmap"] = "none"
    """Of the loss at a time: none weighs all alike, cosmap is highest in the middle (section 3.1)."""


class SampleConfig(Config):
    """The pictures drawn during training, always from the same noise."""

    prompts: tuple[str, ...] = (
        "a red apple left of a cat on a sky blue background",
        "three stars on a dark background",
        "a dog",
        "a small house above a large tree on a green background",
    )
    """What is drawn, one picture each."""
    num_inference_steps: int = Field(20, gt=0)
    """Calls of the network per picture, without those that guidance adds."""
    guidance_scale: float = Field(4.0, ge=0)
    """1 draws without guidance."""


class ReconstructionRun(Config):
    """What all runs share that train an autoencoder, on drawn scenes or on the pictures of a folder."""

    model: AutoencoderConfig | ArticleAutoencoderConfig | None = None
    """Its shape; that of the autoencoder in `start` unless given."""
    start: Path | None = None
    """Folder, file or hub id of an autoencoder that this run starts from; emoji is the bundled one."""
    learns: Learns = "all"
    """all: everything. middle: the encoder's last stage and head and the decoder's first stage, to get used
    to more pixels. decoder: all of it; latents stay what they are, and so do transformers that draw them.
    decoder_head: the decoder's last stage and head, to be sharpened by the second player."""
    scenes: SceneConfig = SceneConfig()
    pictures: PicturesConfig | None = None
    """Train on these instead of scenes."""
    loss: ReconstructionConfig = ReconstructionConfig()
    crop: int | None = Field(None, gt=0)
    """Train on windows of this many pixels at multiples of the stride: around an object of a scene, anywhere
    in a picture. Without it on whole scenes, and on the largest square of a picture."""
    train: LoopConfig

    @model_validator(mode="after")
    def there_is_a_model(self) -> Self:
        if self.model is None and self.start is None:
            raise ValueError("neither model nor start is given: describe a new autoencoder or name one.")
        if self.learns != "all" and self.start is None:
            raise ValueError(
                f'learns="{self.learns}" leaves most weights as they are, and without start they are random. '
                'Name an autoencoder with start, or use learns="all".'
            )
        return self

    @model_validator(mode="after")
    def crop_fits(self) -> Self:
        if self.crop is None:
            return self
        what, size = ("pictures", self.pictures.size) if self.pictures else ("scenes", self.scenes.size)
        if self.crop > size or (self.model is not None and self.crop % self.model.stride):
            of = f"no multiple of the stride {self.model.stride} or " if self.model else ""
            raise ValueError(f"crop={self.crop} is {of}above the {what}' size={size}. Use {size // 2}.")
        return self


class AutoencoderRun(ReconstructionRun):
    """Train an autoencoder on drawn scenes, or on the pictures of a folder."""

    kind: Literal["autoencoder"] = "autoencoder"
    """Tells recipes apart."""
    model: AutoencoderConfig | None = None


class ArticleAutoencoderRun(ReconstructionRun):
    """Train the article's autoencoder, by default on the article's four losses."""

    kind: Literal["article-autoencoder"] = "article-autoencoder"
    """Tells recipes apart."""
    model: ArticleAutoencoderConfig | None = None
    learns: Literal["all", "decoder"] = "all"
    """all: everything. decoder: all of it; latents stay what they are."""
    loss: ReconstructionConfig = ReconstructionConfig(
        perceptual=0.5, adversarial=AdversarialConfig(weight=0.1, adaptive=False), latent=1e-4
    )


class PoolRun(Config):
    """What all runs share that train a network on latents and captions of scenes that were drawn once."""

    model: TransformerConfig | ArticleConfig
    scenes: SceneConfig = SceneConfig()
    train: LoopConfig
    autoencoder: Path
    """Folder of the trained autoencoder; emoji is the bundled one."""
    text_encoder: Path
    """Folder of the text encoder, which stays as it is; emoji is the bundled one."""
    start: Path | None = None
    """Folder of a model whose transformer this run starts from; without it, from random weights."""
    prompt_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of samples that are shown no prompt, so that guidance has something to lead away from."""
    pool: int = Field(100_000, gt=0)
    """Scenes that are drawn and encoded once, then used again and again."""
    captions_per_scene: int = Field(4, gt=0)
    """Phrasings of each scene; every epoch draws one."""
    pair_repeats: int = Field(1, gt=0)
    """How often an epoch shows a scene of two different objects, which are harder than all others."""
    layout_weight: float = Field(0.0, ge=0)
    """Weight of the loss of naming the object at each token, beside that of the network; 0 leaves it out."""
    sample: SampleConfig = SampleConfig()


class TransformerRun(PoolRun):
    """Train a transformer on the latents and captions of drawn scenes, along the flow path."""

    kind: Literal["transformer"] = "transformer"
    """Tells recipes apart."""
    model: TransformerConfig
    times: TimeConfig = TimeConfig()


class ArticleTransformerRun(PoolRun):
    """Train the article's SANA on the latents and captions of drawn scenes, along its DDPM path."""

    kind: Literal["article-transformer"] = "article-transformer"
    """Tells recipes apart."""
    model: ArticleConfig
    sample: SampleConfig = SampleConfig(guidance_scale=7.5)


class TextRun(Config):
    """Train a text encoder on captions and the truth of their scenes: a new one, or one that is there."""

    kind: Literal["text"] = "text"
    """Tells recipes apart."""
    model: SceneTextConfig | None = None
    """Shape of an encoder that is trained from nothing; with `start`, the encoder brings its own."""
    start: Path | None = None
    """Folder of an encoder that goes on learning; the vectors of its word pieces stay as they are."""
    trained_blocks: int = Field(3, gt=0)
    """Of an encoder that goes on learning: how many of its last blocks learn."""
    anchor: float = Field(1.0, ge=0)
    """Of an encoder that goes on learning: weight of the squared distance from the vectors it began with,
    over their size. So words that no caption uses keep their meaning."""
    scenes: SceneConfig = SceneConfig()
    train: LoopConfig
    captions_per_scene: int = Field(4, gt=0)
    """Phrasings of each scene; every epoch draws one."""

    @model_validator(mode="after")
    def one_encoder_is_named(self) -> Self:
        if (self.model is None) == (self.start is None):
            given = "both are given" if self.model else "neither is given"
            raise ValueError(
                f"model is a new encoder and start one that is there, and {given}: give one of them."
            )
        return self


Run = AutoencoderRun | ArticleAutoencoderRun | TransformerRun | ArticleTransformerRun | TextRun
