"""The block of LinearDiT and of the softmax DiT: steered by adaLN-Zero, with either attention."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.config.dit import DiTConfig, LinearDiTConfig
from lineardit.nn.attention import LinearSelfAttention, SoftmaxSelfAttention
from lineardit.nn.feed_forward import MLP
from lineardit.nn.wide import Linear
from lineardit.transformer.block import NORM_EPS, Modulation


class DiTBlock(nn.Module):
    """Attention among the tokens, then an MLP, both steered by adaLN-Zero (arXiv:2212.09748, section 3.2)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=NORM_EPS, elementwise_affine=False)
        self.attention = _attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=NORM_EPS, elementwise_affine=False)
        self.feed_forward = MLP(config.hidden_size, config.mlp_hidden)
        self.to_table = Linear(config.hidden_size, 6 * config.hidden_size)
        self.initialise()

    @classmethod
    def of_size(cls, kind: type[DiTConfig], hidden_size: int, num_heads: int, mlp_ratio: float) -> "DiTBlock":
        """A block by itself, with the attention of `kind`."""
        # It has no positions, so its width need not hold them; nor does input_dim reach it.
        return cls(
            kind(
                input_dim=hidden_size,
                hidden_size=hidden_size,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                position="none",
            )
        )

    def initialise(self) -> None:
        """Xavier for every matrix. The table is zero, and with it both gates: it starts as the identity."""
        xavier(self)
        nn.init.zeros_(self.to_table.weight)

    def forward(
        self, tokens: Float[Tensor, "b n c"], condition: Float[Tensor, "b c"]
    ) -> Float[Tensor, "b n c"]:
        """Refine the tokens once, given a vector of time and class."""
        first, last = Modulation.pair(self.to_table(functional.silu(condition)).unflatten(-1, (6, -1)))
        x = tokens + first.gate * self.attention(first.steer(self.attention_norm(tokens)))
        return x + last.gate * self.feed_forward(last.steer(self.feed_forward_norm(x)))


def _attention(config: DiTConfig) -> nn.Module:
    if isinstance(config, LinearDiTConfig):
        return LinearSelfAttention(
            config.hidden_size, config.head_dim, feature_map=config.feature_map, qkv_bias=True
        )
    return SoftmaxSelfAttention(config.hidden_size, config.head_dim)


def xavier(module: nn.Module) -> None:
    """Xavier for every matrix inside, zero for every bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
