"""LinearDiT and the softmax DiT it is compared with: noisy tokens or images in, their noise out."""

from typing import ClassVar, TypeVar, Unpack

import torch
from einops import rearrange
from jaxtyping import Float, Int, Real
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional

from lineardit.config.dit import DiTConfig, DiTOptions, LinearDiTConfig, SoftmaxDiTConfig
from lineardit.errors import ConfigError, InputError, ShapeError
from lineardit.nn.embedding import ScalarEmbedding, line_positions
from lineardit.nn.wide import Linear
from lineardit.transformer.block import NORM_EPS, Grid
from lineardit.transformer.dit_block import DiTBlock, xavier

SMALL = 0.02

D = TypeVar("D", bound="DiT")


class DiT(nn.Module):
    """What `LinearDiT` and `SoftmaxDiT` share: everything but the attention among tokens.

    Predicts the noise of tokens (b n input_dim), of images (b c h w) with patch_size^2 c = input_dim, or of
    rows (b input_dim), which count as one token each. Whatever goes in comes out in the same shape; with
    `learned_sigma` the last axis of tokens, or the channels of images, double: noise, then variance.
    The numbers of a patch are its rows, then its columns, then its channels.
    """

    config_type: ClassVar[type[DiTConfig]]

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_type):
            raise ConfigError(
                f"{type(self).__name__} is given a {type(config).__name__}. "
                f"Use a {self.config_type.__name__}."
            )
        hidden = config.hidden_size
        self.config = config
        self.to_tokens = Linear(config.input_dim, hidden)
        self.time = ScalarEmbedding(hidden)
        self.classes = None if config.num_classes is None else nn.Embedding(config.num_classes + 1, hidden)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(hidden, eps=NORM_EPS, elementwise_affine=False)
        self.to_table = Linear(hidden, 2 * hidden)
        self.to_noise = Linear(hidden, config.output_dim)
        self.initialise()

    @classmethod
    def build(
        cls: type[D],
        input_dim: int | None = None,
        hidden_size: int = 512,
        num_layers: int = 12,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        num_steps: int = 1000,
        patch_size: int = 2,
    ) -> D:
        """A fresh model. Raises: ConfigError where `input_dim` is missing or `num_heads` does not fit."""
        return cls(
            cls.config_type(
                input_dim=input_dim,
                hidden_size=hidden_size,
                num_layers=num_layers,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                num_classes=num_classes,
                num_steps=num_steps,
                patch_size=patch_size,
            )
        )

    @classmethod
    def output_size(cls, input_dim: int | None = None, **options: Unpack[DiTOptions]) -> int:
        """Numbers of a token that comes out of the model that `build` makes of these options."""
        return cls.config_type(input_dim=input_dim, **options).output_dim

    @classmethod
    def param_count(cls, input_dim: int | None = None, **options: Unpack[DiTOptions]) -> int:
        """Exact number of parameters of the model that `build` makes of these options; allocates nothing."""
        with torch.device("meta"):
            model = cls(cls.config_type(input_dim=input_dim, **options))
        return sum(parameter.numel() for parameter in model.parameters())

    @classmethod
    def documented_param_count(cls, input_dim: int | None = None, **options: Unpack[DiTOptions]) -> int:
        """The documents' estimate 2 in h + 2 h^2 + L (6 h^2 + 4 h^2 + 2 h mlp_hidden).

        It leaves out every bias, the classes, the final adaLN, and that the time comes in 256 sinusoids.
        """
        config = cls.config_type(input_dim=input_dim, **options)
        hidden = config.hidden_size
        per_block = 6 * hidden**2 + 4 * hidden**2 + 2 * hidden * config.mlp_hidden
        return 2 * config.input_dim * hidden + 2 * hidden**2 + config.num_layers * per_block

    @classmethod
    def recommended_defaults(cls) -> dict[str, int | float | None]:
        """Every option of `build` with the value that the documents recommend."""
        config = cls.config_type(input_dim=64)
        return {name: getattr(config, name) for name in ("input_dim", *DiTOptions.__annotations__)}

    def initialise(self) -> None:
        """Xavier for every matrix, 0.02 for what embeds time and class; blocks initialise themselves.

        Two zeros beside those of the blocks: the final adaLN starts without effect, and the noise starts at
        zero, so that the first loss is the variance of its target (DiT).
        """
        for layer in (self.to_tokens, self.time, self.to_table, self.to_noise):
            xavier(layer)
        nn.init.normal_(self.time.first.weight, std=SMALL)
        nn.init.normal_(self.time.second.weight, std=SMALL)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=SMALL)
        nn.init.zeros_(self.to_table.weight)
        nn.init.zeros_(self.to_noise.weight)

    def forward(
        self,
        noisy_input: Float[Tensor, "b *axes"],
        timestep: Real[Tensor, " b"],
        class_labels: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b *out"]:
        """The noise in `noisy_input` at 0 <= timestep < num_steps, in the dtype of the weights.

        Of float16 weights it is float32. Without `class_labels`, and where a label is `num_classes`, the null
        class, it is unconditional. A compiled model does not look at the values of timesteps and labels: that
        would stall the device. On the meta device, and where only shapes are followed, there are none.

        Raises:
            ShapeError: another number of axes, of numbers per token, or of timesteps; a side that
                `patch_size` does not divide.
            InputError: a timestep or class out of range, or classes for an unconditional model.
        """
        self._check(noisy_input, timestep, class_labels)
        x = noisy_input.to(self.to_tokens.weight.dtype)
        condition = self._condition(timestep, class_labels)
        if x.ndim == 4:
            return self._denoise_image(x, condition)
        tokens = x.unsqueeze(1) if x.ndim == 2 else x
        places = line_positions(tokens.shape[1], self.config.hidden_size, device=x.device)
        return self._denoise(tokens, places, condition).reshape(*x.shape[:-1], self.config.output_dim)

    def drop_labels(
        self, class_labels: Int[Tensor, " b"], probability: float, generator: torch.Generator
    ) -> Int[Tensor, " b"]:
        """The labels, each with `probability` replaced by the null class.

        For training: so it learns the unconditional prediction that guidance needs (arXiv:2207.12598).

        Raises:
            InputError: the probability is none, or the model has no classes.
        """
        if not 0 <= probability <= 1:
            raise InputError(f"a dropout probability of {probability} does not lie in [0, 1]. Use 0.1.")
        dropped = torch.rand(len(class_labels), generator=generator, device=generator.device) < probability
        return class_labels.masked_fill(dropped.to(class_labels.device), self.null_class)

    @property
    def null_class(self) -> int:
        """The label that stands for no class. Raises `InputError` for a model without classes."""
        if self.config.num_classes is None:
            raise InputError(
                "this model is unconditional: leave class_labels out, or build it with num_classes=..."
            )
        return self.config.num_classes

    def _condition(self, timestep: Tensor, class_labels: Tensor | None) -> Tensor:
        vector: Tensor = self.time(timestep if timestep.is_floating_point() else timestep.float())
        if self.classes is None:
            return vector
        labels = torch.full_like(timestep, self.null_class, dtype=torch.int64)
        return vector + self.classes(labels if class_labels is None else class_labels.long())

    def _denoise_image(self, image: Tensor, condition: Tensor) -> Tensor:
        patch, half = self.config.patch_size, self.config.hidden_size // 2
        grid = Grid(image.shape[-2] // patch, image.shape[-1] // patch)
        tokens = rearrange(image, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)
        rows = line_positions(grid.height, half, device=image.device)[:, None].expand(*grid, half)
        columns = line_positions(grid.width, half, device=image.device).expand(*grid, half)
        noise = self._denoise(tokens, torch.cat([columns, rows], dim=-1).flatten(0, 1), condition)
        return rearrange(
            noise,
            "b (h w) (parts p q c) -> b (parts c) (h p) (w q)",
            h=grid.height,
            p=patch,
            q=patch,
            c=image.shape[1],
        )

    def _denoise(self, tokens: Tensor, places: Tensor, condition: Tensor) -> Tensor:
        x = self.to_tokens(tokens)
        if self.config.position == "sincos":
            x = x + places.to(x)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.to_table(functional.silu(condition)).unsqueeze(1).chunk(2, dim=-1)
        noise: Tensor = self.to_noise(self.norm(x) * (1 + scale) + shift)
        return noise

    def _check(self, noisy_input: Tensor, timestep: Tensor, class_labels: Tensor | None) -> None:
        config, batch = self.config, len(noisy_input)
        if noisy_input.ndim == 4:
            _check_image(noisy_input, config)
        elif noisy_input.ndim not in {2, 3}:
            raise ShapeError(
                f"noisy_input has {noisy_input.ndim} axes. Give tokens (batch, num_patches, input_dim), "
                "rows (batch, input_dim) or images (batch, channels, height, width)."
            )
        elif noisy_input.shape[-1] != config.input_dim:
            raise ShapeError(
                f"the tokens have {noisy_input.shape[-1]} numbers each, the model takes "
                f"input_dim={config.input_dim}. Give tokens of that many, or images (b c h w)."
            )
        for name, values in (("timestep", timestep), ("class_labels", class_labels)):
            if values is not None and values.shape != (batch,):
                raise ShapeError(
                    f"{name} has shape {tuple(values.shape)}, noisy_input a batch of {batch}: "
                    f"give one number for each, shape ({batch},)."
                )
        classes = 0 if class_labels is None else self.null_class
        if class_labels is not None and class_labels.is_floating_point():
            raise InputError(
                f"class_labels are {class_labels.dtype}. Give whole numbers from 0 to {classes}."
            )
        if torch.compiler.is_compiling() or timestep.is_meta or is_fake(timestep):
            return
        inside = _inside(timestep, config.num_steps).all()
        if class_labels is not None:
            inside = inside & _inside(class_labels, classes + 1).all()
        if inside:  # all at once: each look at a value stalls a GPU
            return
        _check_range("timestep", timestep, config.num_steps)
        if class_labels is not None:
            _check_range("class", class_labels, classes + 1, f"; {classes} is no class")


class LinearDiT(DiT):
    """A diffusion transformer with ELU + 1 linear attention, O(n) in the tokens: the documents' model.

        model = LinearDiT.build(input_dim=64, hidden_size=512, num_layers=12, num_heads=8, patch_size=2)
        noise = model(noisy_input, timestep)

    What differs from that code, and why, is in docs/linear-dit.md.
    """

    config_type = LinearDiTConfig

    @staticmethod
    def build_linear_dit_block(
        hidden_size: int = 512, num_heads: int = 8, mlp_ratio: float = 4.0
    ) -> DiTBlock:
        """One block: called with tokens [B, N, C] and condition [B, C], it starts as the identity."""
        return DiTBlock.of_size(LinearDiTConfig, hidden_size, num_heads, mlp_ratio)


class SoftmaxDiT(DiT):
    """The same transformer with softmax attention, O(n^2): DiT (arXiv:2212.09748)."""

    config_type = SoftmaxDiTConfig

    @staticmethod
    def build_dit_block(hidden_size: int = 512, num_heads: int = 8, mlp_ratio: float = 4.0) -> DiTBlock:
        """One block: called with tokens [B, N, C] and condition [B, C], it starts as the identity."""
        return DiTBlock.of_size(SoftmaxDiTConfig, hidden_size, num_heads, mlp_ratio)


def dit_of(config: DiTConfig) -> DiT:
    """The network of a configuration, with fresh weights."""
    return LinearDiT(config) if isinstance(config, LinearDiTConfig) else SoftmaxDiT(config)


def _check_image(image: Tensor, config: DiTConfig) -> None:
    patch, channels = config.patch_size, image.shape[1]
    fitting, left = divmod(config.input_dim, patch**2)
    if channels * patch**2 != config.input_dim:
        remedy = f"Give images of {fitting} channels." if not left else "Give tokens: no image fits."
        raise ShapeError(
            f"images of {channels} channels have patches of {channels} * {patch}^2 = {channels * patch**2} "
            f"numbers, the model takes input_dim={config.input_dim}. {remedy}"
        )
    for name, side in zip(("height", "width"), image.shape[-2:], strict=True):
        below = side - side % patch
        if side != below or side == 0:
            choices = f"{below} or {below + patch}" if below else f"{patch}"
            raise ShapeError(f"image {name}={side} is not a multiple of patch_size={patch}. Use {choices}.")


def _inside(values: Tensor, upper: int) -> Tensor:
    return (values >= 0) & (values < upper)


def _check_range(name: str, values: Tensor, upper: int, remark: str = "") -> None:
    outside = values[~_inside(values, upper)]
    if len(outside):
        raise InputError(
            f"{name} {outside[0].item()} does not lie in 0 <= {name} < {upper}. Use 0 to {upper - 1}{remark}."
        )
